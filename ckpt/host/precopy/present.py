"""Which pages of a process's private memory are there: those that CRIU would dump.

Rules: what is absent is never touched. Pages that the file has, and the kernel's page of zeros, are not there.
Source: Documentation/admin-guide/mm/pagemap.rst, "Pagemap Scan IOCTL"; include/uapi/linux/fs.h; criu/mem.c,
should_dump_page(); criu/pagemap-cache.c, pmc_fill().
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt

from ckpt.host.precopy.runs import Mask, Runs, no_runs, runs_of
from ckpt.units import PAGE_BYTES

PresentRuns = Callable[[int, int, int], Runs]
"""Takes a descriptor of /proc/PID/pagemap and two addresses, gives the pages between that are there.

Raises OSError, with ESRCH for a process that has ended.
"""

_SCAN: Final = 0xC0606610
_ARGUMENT: Final = struct.Struct("=12Q")
_FILE, _PRESENT, _SWAPPED, _ZERO = 1 << 2, 1 << 3, 1 << 4, 1 << 5
_REGIONS_MAX: Final = 16_384

_ENTRY_BYTES: Final = 8
_ENTRIES_MAX: Final = 1 << 16
_ENTRY_HELD: Final = 3 << 62
_ENTRY_FILE: Final = 1 << 61
_ENTRY_GUARD: Final = 1 << 58
_FRAME: Final = (1 << 55) - 1


def best_way() -> PresentRuns:
    """The fastest that this kernel has."""
    fd = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    try:
        scan(fd, 0, PAGE_BYTES)
    except OSError:
        frame = _frame_of_zeros()
        return lambda pagemap, start, end: read_entries(pagemap, start, end, zero_frame=frame)
    finally:
        os.close(fd)
    return scan


def scan(pagemap: int, start: int, end: int) -> Runs:
    """By the kernel's own search. Fits PresentRuns; also fails where the kernel has no such call."""
    regions = np.empty((_REGIONS_MAX, 3), np.uint64)
    found: list[Runs] = []
    while start < end:
        argument = bytearray(
            _ARGUMENT.pack(
                *(_ARGUMENT.size, 0, start, end, 0, regions.ctypes.data, _REGIONS_MAX, 0),
                *(_FILE | _ZERO, _FILE | _ZERO, _PRESENT | _SWAPPED, _PRESENT | _SWAPPED),
            )
        )
        count = fcntl.ioctl(pagemap, _SCAN, argument)
        bounds = (regions[:count, :2] // np.uint64(PAGE_BYTES)).astype(np.int64)
        found.append(np.column_stack((bounds[:, 0], bounds[:, 1] - bounds[:, 0])))
        start = _ARGUMENT.unpack(argument)[4]
    return np.concatenate(found) if found else no_runs()


def read_entries(pagemap: int, start: int, end: int, *, zero_frame: int) -> Runs:
    """By reading the entry of every page, there or not; `zero_frame` is that of the page of zeros, 0 for unknown."""
    found: list[Runs] = []
    for page in range(start // PAGE_BYTES, end // PAGE_BYTES, _ENTRIES_MAX):
        count = min(end // PAGE_BYTES - page, _ENTRIES_MAX)
        entries = np.frombuffer(os.pread(pagemap, count * _ENTRY_BYTES, page * _ENTRY_BYTES), np.uint64)
        pages = np.flatnonzero(_are_there(entries, zero_frame)) + page
        if len(pages):
            found.append(runs_of(pages))
    return np.concatenate(found) if found else no_runs()


def _are_there(entries: npt.NDArray[np.uint64], zero_frame: int) -> Mask:
    held: Mask = (entries & np.uint64(_ENTRY_HELD)) != 0
    held &= (entries & np.uint64(_ENTRY_FILE | _ENTRY_GUARD)) == 0
    if zero_frame:
        held &= (entries & np.uint64(_FRAME)) != zero_frame
    return held


def _frame_of_zeros() -> int:
    """The number of the page frame that is read where nothing was written; 0 if the kernel does not tell."""
    with mmap.mmap(-1, PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as untouched:
        address = np.frombuffer(untouched, np.uint8).ctypes.data
        assert untouched[0] == 0
        fd = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        try:
            entry = os.pread(fd, _ENTRY_BYTES, address // PAGE_BYTES * _ENTRY_BYTES)
        finally:
            os.close(fd)
    return int.from_bytes(entry, "little") & _FRAME
