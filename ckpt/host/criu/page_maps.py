"""Page maps of image sets whose pages lie in earlier image sets: CRIU's parents.

Rules: a page is in the pages file beside its page map, where the entry says "present", or in the image set that the
link `parent` leads to. There the next page map is asked, which may say the same. CRIU asks only for pages that the
uppermost page map names: one below may say of pages that nobody has that they are further down.
Source: criu/pagemap.c (read_pagemap_page, read_parent_page, seek_pagemap); the flags in criu/include/pagemap.h.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntFlag
from pathlib import Path
from typing import Final, NamedTuple

from ckpt.errors import ObjectCorrupt
from ckpt.host.criu.addresses import lazy_pages, page_map, present_pages
from ckpt.host.criu.imagefile import write_entries
from ckpt.host.criu.pb import image
from ckpt.model.pages import PageRun
from ckpt.units import PAGE_BYTES

_UINT32_MAX: Final = (1 << 32) - 1


class Where(IntFlag):
    """Where the pages of an entry are."""

    PARENT = 1 << 0
    LAZY = 1 << 1
    HERE = 1 << 2


class MapEntry(NamedTuple):
    """An entry of a page map: the pages `page` … `page + pages - 1`."""

    page: int
    pages: int
    where: Where


def read_whole_map(path: Path) -> tuple[int, list[PageRun]]:
    """The number of the pages file of a page map that no parent stands behind, and its pages, ascending.

    Raises:
        ObjectCorrupt: it cannot be read, or not all its pages are in its pages file, each once and in order.
        OsRefused: it cannot be read.
    """
    pages_id, runs, lazy = read_lazy_map(path)
    if lazy:
        raise _corrupt(path, f"its entry of page {lazy[0].page:#x} names no pages of its own pages file")
    return pages_id, runs


def read_lazy_map(path: Path) -> tuple[int, list[PageRun], list[PageRun]]:
    """The same of one that may leave pages at their source: those come last, ascending, too.

    Raises:
        ObjectCorrupt, OsRefused: as read_whole_map().
    """
    pages_file, entries = page_map(path)
    runs: list[PageRun] = []
    lazy: list[PageRun] = []
    end = 0
    for entry in entries:
        page, rest = divmod(entry.vaddr, PAGE_BYTES)
        left = lazy_pages(entry)
        count = left or present_pages(entry)
        if not count:
            raise _corrupt(path, f"its entry of page {page:#x} names no pages of its own pages file")
        if rest or page < end:
            raise _corrupt(
                path, f"its entry of address {entry.vaddr:#x} is not at a page behind the one before"
            )
        (lazy if left else runs).append(PageRun(page, count))
        end = page + count
    return int(pages_file.removeprefix("pages-").removesuffix(".img")), runs, lazy


def write_map(path: Path, pages_id: int, entries: Iterable[MapEntry]) -> None:
    """Write a page map.

    Args:
        path: The file; one that is there is replaced.
        pages_id: The number in the name of its pages file.
        entries: What it says, ascending.

    Raises:
        OsRefused: it cannot be written.
    """
    messages = [image.pagemap_head(pages_id=pages_id)]
    messages += (
        image.pagemap_entry(
            vaddr=page * PAGE_BYTES,
            # Readers older than CRIU 4.2 know this field alone.
            compat_nr_pages=min(pages, _UINT32_MAX),
            nr_pages=pages,
            flags=int(where),
        )
        for page, pages, where in entries
    )
    write_entries(path, "PAGEMAP", messages)


def _corrupt(path: Path, reason: str) -> ObjectCorrupt:
    return ObjectCorrupt(kind="image file", name=path.name, reason=reason)
