"""What of a process's memory is there to be read: this process's own."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from ckpt.host.precopy import present
from ckpt.host.precopy.areas import SharedMapping, private_areas, shared_device, shared_mappings
from ckpt.host.precopy.calls import read_memory
from ckpt.host.precopy.runs import WORDS, Pages, runs_of
from ckpt.host.precopy.shared import data_runs, read_shared
from ckpt.host.virtual.mappings import Mapping
from ckpt.units import PAGE_BYTES, Pid

OWN = Pid(os.getpid())


def address_of(area: mmap.mmap) -> int:
    return ctypes.addressof((ctypes.c_char * 1).from_buffer(area))


@contextmanager
def an_area(pages: int) -> Iterator[tuple[mmap.mmap, int]]:
    area = mmap.mmap(-1, pages * PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    # One page and no huge one.
    area.madvise(mmap.MADV_NOHUGEPAGE)
    yield area, address_of(area)
    area.close()


@contextmanager
def own_pagemap() -> Iterator[int]:
    fd = os.open("/proc/self/pagemap", os.O_RDONLY)
    yield fd
    os.close(fd)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root sees page frames")
@pytest.mark.parametrize("way", ["best", "entries"])
def test_only_pages_with_content_of_their_own_are_there(way: str) -> None:
    ask = present.best_way()
    if way == "entries":
        zero_frame = present._frame_of_zeros()
        assert zero_frame

        def ask(pagemap: int, start: int, end: int) -> Pages:
            return present.read_entries(pagemap, start, end, zero_frame=zero_frame)

    with an_area(70_000) as (area, start), own_pagemap() as pagemap:
        for page in (3, 4, 5, 9, 69_999):
            area[page * PAGE_BYTES] = 1
        assert area[7 * PAGE_BYTES] == 0  # the page of zeros
        found = ask(pagemap, start, start + 70_000 * PAGE_BYTES)
        found[:, 0] -= start // PAGE_BYTES
        assert found.tolist() == [[3, 3], [9, 1], [69_999, 1]]
    with open("/bin/sh", "rb") as file, own_pagemap() as pagemap:
        mapped = mmap.mmap(
            file.fileno(), 8 * PAGE_BYTES, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE
        )
        start = address_of(mapped)
        mapped[2 * PAGE_BYTES] = mapped[4 * PAGE_BYTES]
        assert ask(pagemap, start, start + 8 * PAGE_BYTES).tolist() == [[start // PAGE_BYTES + 2, 1]]
        mapped.close()


def test_what_the_kernel_finds_in_many_calls_is_one_list(monkeypatch: pytest.MonkeyPatch) -> None:
    with an_area(100) as (area, start), own_pagemap() as pagemap:
        for page in range(0, 100, 3):
            area[page * PAGE_BYTES] = 1
        try:
            whole = present.scan(pagemap, start, start + 100 * PAGE_BYTES)
        except OSError:
            pytest.skip("this kernel has no PAGEMAP_SCAN")
        monkeypatch.setattr(present, "_REGIONS_MAX", 4)
        assert np.array_equal(present.scan(pagemap, start, start + 100 * PAGE_BYTES), whole)
        assert len(whole) == 34


def test_a_hole_in_the_memory_costs_its_run_and_no_other() -> None:
    with an_area(12) as (area, start):
        for page in range(12):
            area[page * PAGE_BYTES] = page + 1
        first = start // PAGE_BYTES
        libc = ctypes.CDLL(None)
        assert libc.mprotect(ctypes.c_void_p(start + 3 * PAGE_BYTES), PAGE_BYTES, 0) == 0
        pages = np.array([0, 1, 2, 3, 4, 6, 7, 11]) + first
        rows = np.zeros((len(pages), WORDS), np.uint64)
        assert read_memory(OWN, pages, rows).tolist() == [0, 1, 2, 5, 6, 7]
        assert (rows[[0, 1, 2, 5, 6, 7], 0]).tolist() == [1, 2, 3, 7, 8, 12]
        # Nothing at all where the first run begins with it.
        assert read_memory(OWN, np.array([3, 4]) + first, rows).tolist() == []
        assert libc.mprotect(ctypes.c_void_p(start + 3 * PAGE_BYTES), PAGE_BYTES, 3) == 0
    with pytest.raises(ProcessLookupError):
        read_memory(Pid(1 << 30), runs_of(pages)[:, 0], rows)


def test_shared_memory_is_read_without_its_holes_and_beyond_its_end() -> None:
    fd = os.memfd_create("test")
    try:
        os.pwrite(fd, b"a" * PAGE_BYTES * 2, 4 * PAGE_BYTES)
        os.pwrite(fd, b"end", 20 * PAGE_BYTES)
        assert data_runs(fd).tolist() == [[4, 2], [20, 1]]
        rows = np.full((4, WORDS), 7, np.uint64)
        assert read_shared(fd, np.array([4, 5, 20, 30]), rows).tolist() == [0, 1, 2]
        assert rows[2].tobytes() == b"end".ljust(PAGE_BYTES, b"\0")
        os.ftruncate(fd, 0)
        assert data_runs(fd).tolist() == []
        assert read_shared(fd, np.array([4, 5]), rows).tolist() == []
        assert os.fstat(fd).st_blocks == 0
    finally:
        os.close(fd)


def test_areas_are_told_apart_as_criu_does() -> None:
    device = shared_device()
    numbers = f"{os.major(device):02x}:{os.minor(device):02x}"

    def mapping(start: int, permissions: str, name: str = "", file: str = "") -> Mapping:
        return Mapping(
            start=start << 12, end=(start + 1) << 12, permissions=permissions, offset=0, file=file, name=name
        )

    mappings = [
        mapping(1, "r--p", "/bin/sh", "fe:00 12"),
        mapping(2, "rw-p", "[heap]"),
        mapping(3, "---p"),
        mapping(5, "rw-s", "/dev/zero (deleted)", f"{numbers} 4294967301"),
        mapping(6, "rw-s", "/SYSV00000000 (deleted)"),
        mapping(7, "r--p", "/memfd:x (deleted)", f"{numbers} 9"),
        mapping(8, "rw-s", "/dev/shm/x", "00:19 9"),
        mapping(9, "r--p", "[vvar]"),
        mapping(10, "r-xp", "[vdso]"),
    ]
    areas = [
        (area.start >> 12, area.end >> 12, area.readable, area.whole) for area in private_areas(mappings)
    ]
    assert areas == [(1, 3, True, False), (3, 4, False, False), (7, 8, True, False), (10, 11, True, True)]
    assert list(shared_mappings(mappings, device)) == [
        SharedMapping(shared=5, link="map_files/5000-6000"),
        SharedMapping(shared=0, link="map_files/6000-7000"),
        SharedMapping(shared=9, link="map_files/7000-8000"),
    ]
