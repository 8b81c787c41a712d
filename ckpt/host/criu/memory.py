"""A few bytes of a task's memory in an image set: read, and written in place.

Rule: only pages that the set has itself are touched: no zeros, no pages of a parent set, no shared memory.
Source: criu/pagemap.c; ckpt.host.criu.addresses.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from ckpt.errors import OsRefused
from ckpt.host.criu.addresses import page_map, present_pages
from ckpt.units import PAGE_BYTES, Pid


def read_memory(images: Path, pid: Pid, address: int, size: int) -> bytes | None:
    """What the process has at `address`; None where the set does not have all of it.

    Raises:
        ObjectCorrupt, OsRefused: an image cannot be read.
    """
    pieces = _pieces(images, pid, address, size)
    if pieces is None:
        return None
    path, places = pieces
    content = b""
    try:
        with path.open("rb") as pages:
            for offset, length in places:
                pages.seek(offset)
                content += pages.read(length)
    except OSError as error:
        raise OsRefused(operation="read", subject=str(path), reason=os.strerror(error.errno or 0)) from error
    return content if len(content) == size else None


def write_memory(images: Path, pid: Pid, address: int, content: bytes) -> bool:
    """Put `content` at `address` of the process; whether the set had all of that memory.

    Raises:
        ObjectCorrupt, OsRefused: an image cannot be read or written.
    """
    pieces = _pieces(images, pid, address, len(content))
    if pieces is None:
        return False
    path, places = pieces
    try:
        with path.open("r+b") as pages:
            for offset, length in places:
                pages.seek(offset)
                pages.write(content[:length])
                content = content[length:]
    except OSError as error:
        raise OsRefused(operation="write", subject=str(path), reason=os.strerror(error.errno or 0)) from error
    return True


def _pieces(images: Path, pid: Pid, address: int, size: int) -> tuple[Path, list[tuple[int, int]]] | None:
    """The pages file, and where in it the bytes are: offsets and lengths in their order."""
    name, entries = page_map(images / f"pagemap-{pid}.img")
    wanted = [
        (
            start // PAGE_BYTES,
            start % PAGE_BYTES,
            min(end, start // PAGE_BYTES * PAGE_BYTES + PAGE_BYTES) - start,
        )
        for start, end in _by_page(address, address + size)
    ]
    found: dict[int, int] = {}
    place = 0
    for entry in entries:
        pages = present_pages(entry)
        first = entry.vaddr // PAGE_BYTES
        for page, _, _ in wanted:
            if first <= page < first + pages:
                found[page] = (place + page - first) * PAGE_BYTES
        place += pages
    if any(page not in found for page, _, _ in wanted):
        return None
    return images / name, [(found[page] + within, length) for page, within, length in wanted]


def _by_page(start: int, end: int) -> Iterator[tuple[int, int]]:
    while start < end:
        yield start, end
        start = (start // PAGE_BYTES + 1) * PAGE_BYTES
