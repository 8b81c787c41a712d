"""The memory in an image set: every kind of mapping is called by its name, and its pages are where they are."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from fakes.memory_images import (
    ANON_PRIVATE,
    ANON_SHARED,
    FILE_PRIVATE,
    FILE_SHARED,
    GUARD,
    HEAP,
    LAZY,
    MAP_ANONYMOUS,
    MAP_GROWSDOWN,
    MAP_HUGETLB,
    MAP_PRIVATE,
    MAP_SHARED,
    MEMFD,
    PARENT,
    PRESENT,
    SYSV,
    VDSO,
    VVAR,
    Images,
)

from ckpt.errors import ObjectCorrupt
from ckpt.host.criu.areas import address_spaces
from ckpt.model.memory import AddressSpace, AreaKind, PageRun
from ckpt.units import PAGE_BYTES


def the_process(images: Images) -> AddressSpace:
    return address_spaces(images.write())[0]


def test_every_mapping_has_its_kind_its_file_and_what_it_shares(tmp_path: Path) -> None:
    images = Images(tmp_path)
    images.regular(1, "usr/bin/program")
    images.regular(2, "/dev/shm/ring")
    images.memfd(3, "/dev/zero", shmid=77)
    images.memfd(4, "frames", shmid=78)
    private, shared = MAP_PRIVATE | MAP_ANONYMOUS, MAP_SHARED
    images.vma(10, 1, FILE_PRIVATE, shmid=1, pgoff=8192, prot=5)
    images.vma(20, 2, HEAP | ANON_PRIVATE, flags=private)
    images.vma(30, 2, ANON_PRIVATE, flags=private, prot=0)
    images.vma(40, 2, FILE_SHARED, shmid=2, flags=shared)
    images.vma(50, 2, FILE_SHARED | MEMFD, shmid=3, flags=shared)
    images.vma(60, 2, FILE_SHARED | MEMFD, shmid=4, flags=shared, pgoff=4096)
    images.vma(70, 2, FILE_PRIVATE | MEMFD, shmid=4)
    images.vma(80, 2, ANON_SHARED | SYSV, shmid=0, flags=shared)
    images.vma(90, 2, ANON_PRIVATE, flags=private | MAP_HUGETLB)
    images.vma(100, 2, VVAR | ANON_PRIVATE, prot=1)
    images.vma(110, 2, VDSO | ANON_PRIVATE, prot=5)
    images.vma(120, 2, ANON_PRIVATE, flags=private | MAP_GROWSDOWN)
    assert [
        (area.start // PAGE_BYTES, area.kind, area.permissions, area.path, area.offset, area.shared)
        for area in the_process(images).areas
    ] == [
        (10, AreaKind.FILE, "r-xp", "/usr/bin/program", 8192, None),
        (20, AreaKind.HEAP, "rw-p", "", 0, None),
        (30, AreaKind.ANONYMOUS, "---p", "", 0, None),
        (40, AreaKind.SHARED_FILE, "rw-s", "/dev/shm/ring", 0, None),
        (50, AreaKind.SHARED_MEMORY, "rw-s", "", 0, 77),
        (60, AreaKind.SHARED_MEMORY, "rw-s", "/memfd:frames", 4096, 78),
        (70, AreaKind.FILE, "rw-p", "/memfd:frames", 0, 78),
        (80, AreaKind.SHARED_MEMORY, "rw-s", "", 0, 0),
        (90, AreaKind.HUGE_PAGES, "rw-p", "", 0, None),
        (100, AreaKind.KERNEL, "r--p", "", 0, None),
        (110, AreaKind.KERNEL, "r-xp", "", 0, None),
        (120, AreaKind.STACK, "rw-p", "", 0, None),
    ]


def test_a_path_that_is_not_utf_8_keeps_its_bytes(tmp_path: Path) -> None:
    images = Images(tmp_path)
    images.regular(1, "/srv/placeholder")
    images.vma(10, 1, FILE_PRIVATE, shmid=1)
    images.write()
    files = tmp_path / "files.img"
    files.write_bytes(files.read_bytes().replace(b"placeholder", b"gr\xfc\xdfe.dat \xff"))
    [space] = address_spaces(tmp_path)
    assert os.fsencode(space.areas[0].path) == b"/srv/gr\xfc\xdfe.dat \xff"


def test_guards_are_no_mappings(tmp_path: Path) -> None:
    images = Images(tmp_path)
    images.vma(20, 4, ANON_PRIVATE)
    images.vma(21, 1, GUARD)
    assert [area.pages for area in the_process(images).areas] == [4]


def test_pages_are_told_in_as_few_runs_as_can_be(tmp_path: Path) -> None:
    images = Images(tmp_path)
    images.vma(10, 30, ANON_PRIVATE)
    images.page_map(
        "7", 1, (10, 2, PRESENT), (12, 3, PRESENT | LAZY), (15, 4, 0), (19, 1, PRESENT), (30, 1, PRESENT)
    )
    space = the_process(images)
    assert (space.name, space.pids, space.pages_file) == ("pagemap-7", (7,), "pages-1.img")
    assert space.runs == (
        PageRun(page=10, count=5, chunk=0),
        PageRun(page=15, count=4, chunk=None),
        PageRun(page=19, count=1, chunk=5),
        PageRun(page=30, count=1, chunk=6),
    )


@pytest.mark.parametrize("flags", [PARENT, LAZY])
def test_pages_of_another_image_set_are_refused(tmp_path: Path, flags: int) -> None:
    images = Images(tmp_path)
    images.vma(10, 30, ANON_PRIVATE)
    images.page_map("7", 1, (10, 2, flags))
    with pytest.raises(ObjectCorrupt, match="another image set"):
        the_process(images)


@pytest.mark.parametrize("entries", [((10, 2), (11, 1)), ((10, 2), (9, 1)), ((10, 1 << 60),)])
def test_a_page_map_that_lies_is_refused(tmp_path: Path, entries: tuple[tuple[int, int], ...]) -> None:
    images = Images(tmp_path)
    images.vma(10, 30, ANON_PRIVATE)
    images.page_map("7", 1, *((page, count, PRESENT) for page, count in entries))
    with pytest.raises(ObjectCorrupt, match="cannot be"):
        the_process(images)


def test_mappings_that_overlap_are_refused(tmp_path: Path) -> None:
    images = Images(tmp_path)
    images.vma(10, 30, ANON_PRIVATE)
    images.vma(20, 30, ANON_PRIVATE)
    with pytest.raises(ObjectCorrupt, match=r"mm-7\.img"):
        the_process(images)


def test_processes_that_share_their_memory_have_one_and_zombies_none(tmp_path: Path) -> None:
    images = Images(tmp_path, vm_ids={8: 7})
    images.vma(10, 1, ANON_PRIVATE, pid=7)
    images.vma(10, 1, ANON_PRIVATE, pid=8)
    images.vma(10, 1, ANON_PRIVATE, pid=9)
    images.page_map("shmem-77", 2, (0, 1, PRESENT))
    spaces = address_spaces(images.write(zombies=(11,)))
    assert [(space.name, space.pids) for space in spaces] == [
        ("pagemap-7", (7, 8)),
        ("pagemap-9", (9,)),
        ("pagemap-shmem-77", ()),
    ]


def test_many_mappings_and_pages_are_read_quickly(tmp_path: Path) -> None:
    images = Images(tmp_path)
    for number in range(15_000):
        images.vma(8 * number, 4, ANON_PRIVATE)
    images.page_map("7", 1, *((2 * number, 1, PRESENT) for number in range(131_072)))
    images.write()
    began = time.process_time()
    [space] = address_spaces(tmp_path)
    assert (len(space.areas), len(space.runs)) == (15_000, 131_072)
    assert time.process_time() - began < 4  # measured: see the figures of docs/memory.md
