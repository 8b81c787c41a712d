"""Is an image set whole? Asked before every restore.

Rules: only a dump that succeeded leaves inventory.img and pstree.img. A pages file that is shorter than its
page map says makes `criu restore` read for ever: its length is checked for every map.
Source: criu/pagemap.c (read_local_page), criu/cr-dump.c; the flags in criu/include/pagemap.h.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final

from ckpt.errors import ObjectCorrupt, RestoreFailed
from ckpt.host.criu.imagefile import read_entries
from ckpt.units import PAGE_BYTES

_PRESENT: Final = 1 << 2
_REMEDY: Final = "Fetch or dump the checkpoint again."


def check_complete(images: Path) -> None:
    """Return if the image set in the directory is complete.

    Raises:
        RestoreFailed: something is missing or too short; says what.
        ObjectCorrupt, OsRefused: a file of it cannot be read.
    """
    for name in ("inventory.img", "pstree.img"):
        if not (images / name).is_file():
            raise RestoreFailed(
                cause=f"the image set {images} is not complete: it has no {name}", remedy=_REMEDY
            )
    expected: dict[int, int] = {}
    with os.scandir(images) as entries:
        maps = [Path(entry.path) for entry in entries if entry.name.startswith("pagemap-")]
    for path in maps:
        pages_id, pages = _pages_of(path)
        expected[pages_id] = expected.get(pages_id, 0) + pages
    for pages_id, pages in expected.items():
        _check_length(images / f"pages-{pages_id}.img", pages * PAGE_BYTES)


def _pages_of(path: Path) -> tuple[int, int]:
    """The number of the pages file that this map describes, and how many pages of it are in that file."""
    entries = read_entries(path, "PAGEMAP", "pagemap_entry", first="pagemap_head")
    if not entries:
        raise ObjectCorrupt(kind="image file", name=path.name, reason="it has no head")
    return entries[0].pages_id, sum(_present(entry) for entry in entries[1:])


def _present(entry: Any) -> int:
    if entry.HasField("flags"):
        if not entry.flags & _PRESENT:
            return 0
    elif entry.in_parent:
        return 0
    return int(entry.nr_pages if entry.HasField("nr_pages") else entry.compat_nr_pages)


def _check_length(path: Path, expected_bytes: int) -> None:
    size = path.stat().st_size if path.is_file() else -1
    if size < expected_bytes:
        found = "is missing" if size < 0 else f"has {size} bytes"
        raise RestoreFailed(
            cause=f"the image set {path.parent} is not complete: {path.name} {found}, "
            f"and its page map needs {expected_bytes}",
            remedy=_REMEDY,
        )
