"""What CRIU dumps of a process's memory, as far as its mappings tell: private areas, and shared memory without a file.

Rules:
- A process's own pages of a private mapping are its private memory, whatever is mapped.
- Shared memory is what lives in the kernel's own tmpfs: mmap(MAP_SHARED | MAP_ANONYMOUS), memfd_create(2), shmget(2).
  It is named by its inode number, cut to 32 bits; of shmget(2) that is the segment's id.
- Files that are mapped shared, in /dev/shm as well, are in no page map; huge pages that are shared are left to the dump.
Source: criu/proc_parse.c, handle_vma(); criu/memfd.c, dump_memfd_inode(); criu/ipc_ns.c, dump_ipc_shm_pages().
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from ckpt.host.virtual.mappings import Mapping

_KERNELS: Final = frozenset(("[vvar]", "[vvar_vclock]", "[vsyscall]", "[vectors]", "[uprobes]"))
_VDSO: Final = "[vdso]"
_SYSV: Final = "/SYSV"
_SHARED_ID_MAX: Final = 0xFFFF_FFFF


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivateArea:
    """From `start` to before `end` (addresses). `whole`: all its pages are dumped, and there is no asking which."""

    start: int
    end: int
    readable: bool
    whole: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedMapping:
    """Shared memory with the number `shared`; `link` is the name in /proc/PID through which it can be opened."""

    shared: int
    link: str


def shared_device() -> int:
    """The device number of the kernel's own tmpfs.

    Raises:
        OSError: there is no memory for a file in it.
    """
    fd = os.memfd_create("", os.MFD_CLOEXEC)
    try:
        return os.fstat(fd).st_dev
    finally:
        os.close(fd)


def private_areas(mappings: Iterable[Mapping]) -> Iterator[PrivateArea]:
    """The private areas, neighbours of one kind as one."""
    last: PrivateArea | None = None
    for mapping in mappings:
        if mapping.permissions[3] != "p" or mapping.name in _KERNELS:
            continue
        area = PrivateArea(
            start=mapping.start,
            end=mapping.end,
            readable=mapping.permissions[0] == "r",
            whole=mapping.name == _VDSO,
        )
        if last is not None and _is_continued(last, area):
            last = PrivateArea(start=last.start, end=area.end, readable=area.readable, whole=area.whole)
            continue
        if last is not None:
            yield last
        last = area
    if last is not None:
        yield last


def shared_mappings(mappings: Iterable[Mapping], device: int) -> Iterator[SharedMapping]:
    """What of these maps shared memory; `device` is the kernel's own tmpfs."""
    for mapping in mappings:
        number = _shared_number(mapping, device)
        if number is not None:
            yield SharedMapping(shared=number, link=f"map_files/{mapping.start:x}-{mapping.end:x}")


def number_of(status: os.stat_result) -> int:
    """The number of shared memory that was opened."""
    return status.st_ino & _SHARED_ID_MAX


def _is_continued(last: PrivateArea, area: PrivateArea) -> bool:
    return (last.end, last.readable, last.whole) == (area.start, area.readable, area.whole)


def _shared_number(mapping: Mapping, device: int) -> int | None:
    if not mapping.file:
        # The first segment of shmget(2) in a namespace has the number 0.
        return 0 if mapping.name.startswith(_SYSV) and mapping.permissions[3] == "s" else None
    numbers, inode = mapping.file.split()
    major, minor = (int(number, 16) for number in numbers.split(":"))
    return int(inode) & _SHARED_ID_MAX if os.makedev(major, minor) == device else None
