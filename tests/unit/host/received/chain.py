"""CRIU's way of reading pages of an image set with parents, written down once more for the tests.

It goes forward only, as CRIU does (criu/pagemap.c, seek_pagemap): what CRIU would not find is not found here.
"""

from __future__ import annotations

from pathlib import Path

from ckpt.host.criu.addresses import page_map
from ckpt.units import PAGE_BYTES

PARENT, PRESENT = 1, 4


class Reader:
    """Reads one page map of an image set, and those of its parents."""

    def __init__(self, images: Path, name: str) -> None:
        parent = images / "parent"
        self._parent = Reader(parent, name) if (parent / name).exists() else None
        pages_file, self._entries = page_map(images / name)
        self._pages = (images / pages_file).read_bytes()
        self._entry = self._offset = 0

    def read_all(self) -> dict[int, bytes]:
        """Every page that the uppermost page map names."""
        found: dict[int, bytes] = {}
        for entry in list(self._entries):
            page = entry.vaddr // PAGE_BYTES
            for number in range(page, page + entry.nr_pages):
                found[number] = self._read(number)
        return found

    def _read(self, page: int) -> bytes:
        while True:
            assert self._entry < len(self._entries), f"page {page:#x} is missing"
            entry = self._entries[self._entry]
            first, count = entry.vaddr // PAGE_BYTES, entry.nr_pages
            assert page >= first, f"page {page:#x} is missing"
            if page < first + count:
                break
            self._offset += count if entry.flags & PRESENT else 0
            self._entry += 1
        if entry.flags & PARENT:
            assert self._parent is not None, f"page {page:#x} has no parent"
            return self._parent._read(page)
        start = (self._offset + page - first) * PAGE_BYTES
        content = self._pages[start : start + PAGE_BYTES]
        assert len(content) == PAGE_BYTES, "CRIU would read for ever"
        return content
