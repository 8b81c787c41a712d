"""Pages of an image set that need not be there when its tasks go on.

Rules:
- CRIU marks in every dump which pages a daemon may bring later: private anonymous memory that is neither locked nor huge
  nor the kernel's own, but for the page under each stack pointer. Only what it marks is left.
- A page map that was changed names as present what its pages file still has, one after another, and all else as lazy.
Source: criu/mem.c (generate_iovs), criu/include/vma.h (vma_entry_can_be_lazy), criu/page-xfer.c (ppb_xfer_flags);
criu/pie/restorer.c (vma_remap) registers by the same rule.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ckpt.errors import ObjectCorrupt
from ckpt.host.criu.addresses import is_elsewhere, is_lazy, page_map, page_maps, present_pages
from ckpt.host.criu.page_maps import MapEntry, Where, write_map
from ckpt.model.memory import PageRun
from ckpt.units import PAGE_BYTES, Pid

_OF_PROCESS: Final = re.compile(r"pagemap-([1-9][0-9]{0,9})\.img")
_NUMBER: Final = re.compile(r"pages-([0-9]{1,10})\.img")


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftPages:
    """A process, as the images call it, of whose memory some can come later.

    The runs ascend; those of `present` and `left` say where in the file `pages_file` their pages are.
    """

    page_map: Path
    pid: Pid
    pages_file: str
    present: tuple[PageRun, ...]
    left: tuple[PageRun, ...]

    @property
    def page_count(self) -> int:
        """How many pages the whole pages file has."""
        return sum(run.count for run in (*self.present, *self.left))

    def leave(self) -> None:
        """Let the page map say that they come later.

        Raises:
            OsRefused: it cannot be written.
        """
        entries = [MapEntry(run.page, run.count, Where.HERE) for run in self.present]
        entries += (MapEntry(run.page, run.count, Where.LAZY) for run in self.left)
        found = _NUMBER.fullmatch(self.pages_file)
        assert found is not None  # page_map() made the name
        write_map(self.page_map, int(found[1]), sorted(entries))


def pages_to_leave(images: Path) -> tuple[LeftPages, ...]:
    """The processes of an image set of whose memory some can come later; its pages files need not be there.

    Raises:
        ObjectCorrupt: a page map is not what it should be.
        OsRefused: it cannot be read.
    """
    found = []
    for path in page_maps(images):
        if name := _OF_PROCESS.fullmatch(path.name):
            pages_file, entries = page_map(path)
            present, left = _sorted_out(path, entries)
            if left:
                found.append(
                    LeftPages(
                        page_map=path,
                        pid=Pid(int(name[1])),
                        pages_file=pages_file,
                        present=tuple(present),
                        left=tuple(left),
                    )
                )
    return tuple(found)


def _sorted_out(path: Path, entries: Iterable[Any]) -> tuple[list[PageRun], list[PageRun]]:
    present: list[PageRun] = []
    left: list[PageRun] = []
    end = place = 0
    for entry in entries:
        page, rest = divmod(entry.vaddr, PAGE_BYTES)
        if rest or page < end or is_elsewhere(entry):
            raise ObjectCorrupt(
                kind="image file",
                name=path.name,
                reason=f"its entry of address {entry.vaddr:#x} is not of pages that its own pages file has next",
            )
        count = present_pages(entry)
        if count:
            (left if is_lazy(entry) else present).append(PageRun(page=page, count=count, chunk=place))
        end, place = page + count, place + count
    return present, left
