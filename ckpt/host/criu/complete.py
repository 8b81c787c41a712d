"""Is an image set whole? Asked before every restore.

Rules: only a dump that succeeded leaves inventory.img and pstree.img. A pages file that is shorter than its
page map says makes `criu restore` read for ever: its length is checked for every map.
Source: criu/pagemap.c (read_local_page), criu/cr-dump.c; the flags in criu/include/pagemap.h.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from ckpt.errors import RestoreFailed
from ckpt.host.criu.addresses import page_map, page_maps, present_pages
from ckpt.units import PAGE_BYTES

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
    expected: dict[str, int] = {}
    for path in page_maps(images):
        pages_file, entries = page_map(path)
        expected[pages_file] = expected.get(pages_file, 0) + sum(map(present_pages, entries))
    for pages_file, pages in expected.items():
        _check_length(images / pages_file, pages * PAGE_BYTES)


def _check_length(path: Path, expected_bytes: int) -> None:
    size = path.stat().st_size if path.is_file() else -1
    if size < expected_bytes:
        found = "is missing" if size < 0 else f"has {size} bytes"
        raise RestoreFailed(
            cause=f"the image set {path.parent} is not complete: {path.name} {found}, "
            f"and its page map needs {expected_bytes}",
            remedy=_REMEDY,
        )
