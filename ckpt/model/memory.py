"""The memory of a process as an image set has it: areas, and which of their pages are stored where.

Addresses and lengths are bytes, pages are of PAGE_BYTES.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, StrEnum

from ckpt.units import PAGE_BYTES, ByteCount, Pid


class AreaKind(StrEnum):
    """What an area of memory is made of."""

    HEAP = "heap"
    STACK = "stack"
    ANONYMOUS = "anonymous"
    FILE = "file"
    SHARED_FILE = "shared file"
    SHARED_MEMORY = "shared memory"
    HUGE_PAGES = "huge pages"
    KERNEL = "kernel"
    DEVICE = "device"


class PageState(IntEnum):
    """What became of one page.

    `FILE_BACKED` pages are not stored: the file has them. `STORED` pages have no earlier one to be compared with.
    """

    ABSENT = 0
    ZERO = 1
    FILE_BACKED = 2
    SHARED = 3
    STORED = 4
    UNCHANGED = 5
    CHANGED = 6


class Backing(StrEnum):
    """Where the bytes of a part of memory are.

    `ZEROS` were never written or are all zeros: the process reads zeros there. What is `ABSENT` is nowhere: not
    mapped, or the kernel's or a device's own.
    """

    STORED = "stored"
    ZEROS = "zeros"
    FILE = "file"
    ABSENT = "absent"


@dataclass(frozen=True, slots=True, kw_only=True)
class PageRun:
    """Pages that follow one another: from `page` on (an address divided by PAGE_BYTES), `count` of them.

    `chunk` is the place of the first one in the pages file, None for pages that are there and all zeros.
    """

    page: int
    count: int
    chunk: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Area:
    """One mapping of a process.

    `permissions` are as in /proc/PID/maps ("rw-p"). `path` is the mapped file's, "" for none; `offset` its first byte
    in that file, or in the shared memory. `shared` is the id of the shared memory that it shows, None for none: a
    segment of System V may have the id 0.
    """

    start: int
    end: int
    permissions: str
    kind: AreaKind
    path: str
    offset: int
    shared: int | None

    @property
    def size_bytes(self) -> ByteCount:
        """Its length."""
        return ByteCount(self.end - self.start)

    @property
    def pages(self) -> int:
        """How many pages it has."""
        return (self.end - self.start) // PAGE_BYTES

    @property
    def shared_space(self) -> str:
        """The name of the address space that its pages are in if they are not its process's own; "" for none."""
        return "" if self.shared is None else f"pagemap-shmem-{self.shared}"


@dataclass(frozen=True, slots=True, kw_only=True)
class AddressSpace:
    """The memory of one process, or one object of shared memory.

    `name` is the page map's: "pagemap-7" for the process that the images call 7, "pagemap-shmem-4" for shared memory,
    whose pages are counted from its beginning and which has no areas. `pages_file` is "" if nothing is stored.
    `pids` are the processes that live in it, as the images call them.
    """

    name: str
    pids: tuple[Pid, ...]
    pages_file: str
    areas: tuple[Area, ...]
    runs: tuple[PageRun, ...]
