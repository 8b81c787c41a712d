"""At which addresses the pages of an image set lie, so that the store finds the same page of the next dump.

A pages file has the pages of one page map one after another, in the order of its entries, and only those that
the entry's flags call present: others are zeros, in the parent's images, or fetched later.
Source: criu/pagemap.c (read_local_page, advance); the flags in criu/include/pagemap.h.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from ckpt.errors import ObjectCorrupt, OsRefused
from ckpt.host.criu.imagefile import read_entries
from ckpt.model.checkpoint import AddressRun
from ckpt.units import PAGE_BYTES

_PREFIX: Final = "pagemap-"
_SUFFIX: Final = ".img"
_PARENT: Final = 1 << 0
_LAZY: Final = 1 << 1
_PRESENT: Final = 1 << 2


def page_addresses(images: Path) -> dict[str, tuple[AddressRun, ...]]:
    """From the name of each pages file to the addresses of its pages, in the file's order.

    The space of a run is the page map's name: "pagemap-7" for the process 7, whose pages are those of its
    virtual addresses; "pagemap-shmem-4" for shared memory, whose pages are counted from its beginning.

    Raises:
        ObjectCorrupt, OsRefused: a page map cannot be read.
    """
    found: dict[str, tuple[AddressRun, ...]] = {}
    for path in page_maps(images):
        pages_file, entries = page_map(path)
        found[pages_file] = tuple(_runs(path.name.removesuffix(_SUFFIX), entries))
    return found


def page_maps(images: Path) -> list[Path]:
    """The page maps of an image set.

    Raises:
        OsRefused: the directory cannot be read.
    """
    try:
        names = sorted(os.listdir(images))
    except OSError as error:
        raise OsRefused(operation="read", subject=str(images), reason=error.strerror or str(error)) from error
    return [images / name for name in names if name.startswith(_PREFIX) and name.endswith(_SUFFIX)]


def page_map(path: Path) -> tuple[str, list[Any]]:
    """The name of the pages file that a page map describes, and its entries (pagemap_entry).

    Raises:
        ObjectCorrupt, OsRefused: it cannot be read.
    """
    entries = read_entries(path, "PAGEMAP", "pagemap_entry", first="pagemap_head")
    if not entries:
        raise ObjectCorrupt(kind="image file", name=path.name, reason="it has no head")
    head = entries.pop(0)
    return f"pages-{head.pages_id}{_SUFFIX}", entries


def present_pages(entry: Any) -> int:
    """How many pages of an entry of a page map (pagemap_entry) are in its pages file."""
    if entry.HasField("flags"):
        if not entry.flags & _PRESENT:
            return 0
    elif entry.in_parent:
        return 0
    return int(entry.nr_pages if entry.HasField("nr_pages") else entry.compat_nr_pages)


def is_lazy(entry: Any) -> bool:
    """Whether a daemon may bring the pages of an entry later, wherever they are."""
    return bool(entry.HasField("flags") and entry.flags & _LAZY)


def lazy_pages(entry: Any) -> int:
    """How many pages of an entry were left at their source, to be brought when they are touched."""
    if entry.HasField("flags") and entry.flags & _LAZY and not entry.flags & _PRESENT:
        return int(entry.nr_pages if entry.HasField("nr_pages") else entry.compat_nr_pages)
    return 0


def lazy_pages_in(images: Path) -> int:
    """How many pages of an image set were left at their source.

    Raises:
        ObjectCorrupt, OsRefused: a page map cannot be read.
    """
    return sum(lazy_pages(entry) for path in page_maps(images) for entry in page_map(path)[1])


def is_elsewhere(entry: Any) -> bool:
    """Whether the pages of an entry are in an earlier dump's images, or were left at their source."""
    if entry.HasField("flags"):
        return not entry.flags & _PRESENT and bool(entry.flags & (_PARENT | _LAZY))
    return bool(entry.in_parent)


def _runs(space: str, entries: Iterable[Any]) -> Iterator[AddressRun]:
    chunk = 0
    for page, count in _areas(entries):
        yield AddressRun(space=space, page=page, chunk=chunk, count=count)
        chunk += count


def _areas(entries: Iterable[Any]) -> Iterator[tuple[int, int]]:
    """The first page and the number of pages of each area that the pages file has whole."""
    first = count = 0
    for entry in entries:
        pages = present_pages(entry)
        page = entry.vaddr // PAGE_BYTES
        if pages and page == first + count:
            count += pages
        elif pages:
            if count:
                yield first, count
            first, count = page, pages
    if count:
        yield first, count
