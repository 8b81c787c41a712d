"""The memory of running tasks, sent in rounds: each sends what is not yet there, or is not any more as it was sent.

Rules:
- No task is stopped or changed, and no page of theirs is touched that is not there. What cannot be read, and what is
  torn because a task writes meanwhile, is made good by finish(), which reads what CRIU wrote of the stopped tasks.
- What the sink has taken, and what is compared with later, are the same bytes.
- A space is "ROOT/PAGE MAP", the root being Tree.root: "4711/pagemap-1", "4711/pagemap-shmem-5".
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

from ckpt.host.criu.addresses import page_addresses
from ckpt.host.precopy.comparing import Comparison, Judged, Space
from ckpt.host.precopy.dumped import dumped_pages
from ckpt.host.precopy.known import KnownPages, KnownSpace
from ckpt.host.precopy.reading import Contents, MemoryReader
from ckpt.host.precopy.runs import Pages, Rows
from ckpt.host.precopy.sending import PageSink
from ckpt.host.precopy.spool import Spool
from ckpt.model.workload import Tree
from ckpt.units import Pid

__all__ = ["KnownPages", "LiveMemory", "PageSink", "RoundCount"]


_SAMPLE: Final = 32
_THREADS: Final = 2
_BATCHES_AT_ONCE: Final = 32
"""To hand a batch to a thread takes as long as to compare it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundCount:
    """How many pages were looked at, and how many of them were sent: new ones, and others than before."""

    scanned_pages: int
    changed_pages: int


class LiveMemory:
    """What was sent of a workload's memory."""

    def __init__(self, spool: str, *, known: KnownPages | None = None) -> None:
        """Begin, with nothing sent.

        Args:
            spool: An empty directory, on a file system that has room for all that will be sent.
            known: What the other side says it has already; that is not sent.

        Raises:
            OsRefused: nothing can be written there, or the kernel does not show pages of memory.
        """
        self._reader = MemoryReader()
        self._spool = Spool(spool)
        self._known = known
        self._spaces: dict[str, Space] = {}

    def round(self, trees: tuple[Tree, ...], sink: PageSink) -> RoundCount:
        """Send what was not yet sent of these trees, or has changed since; whatever the tasks do meanwhile.

        What the sink raises ends the round; the next one sends what it did not take.

        Raises:
            NoSpace, OsRefused: the spool cannot be written.
        """
        return _sum(
            self._compare(f"{tree.root}/{name}", contents, sink, keeps=True)
            for tree in trees
            for name, contents in self._reader.spaces(tree)
        )

    def estimate(self, trees: tuple[Tree, ...]) -> int:
        """About how many pages a round would send now: one page of every _SAMPLE is looked at, and nothing is sent."""
        changed = sum(
            self._space(f"{tree.root}/{name}").count_changed(pages, rows)
            for tree in trees
            for name, contents in self._reader.spaces(tree, every=_SAMPLE)
            for pages, rows in contents
        )
        return changed * _SAMPLE

    def finish(self, root: Pid, images: str, sink: PageSink) -> RoundCount:
        """Send every page that CRIU wrote of a tree, and that was not sent with what is in it now.

        It is not kept: a round after it sends it again.

        Args:
            root: The tree's root, as in Tree.root.
            images: CRIU's image set of the tree.
            sink: Where the pages go.

        Raises:
            ObjectCorrupt, OsRefused: the image set cannot be read.
        """
        return _sum(
            self._compare_still(f"{root}/{runs[0].space}", dumped_pages(Path(images, file), runs), sink)
            for file, runs in page_addresses(Path(images)).items()
            if runs
        )

    def close(self) -> None:
        """Give up what was kept; safe to repeat."""
        self._spaces.clear()
        self._spool.close()

    def _compare(self, name: str, contents: Contents, sink: PageSink, *, keeps: bool) -> RoundCount:
        comparison = Comparison(self._space(name), sink, keeps=keeps)
        try:
            for pages, rows in contents:
                comparison.take(pages, rows)
            comparison.flush()
        finally:
            comparison.close()
        return RoundCount(scanned_pages=comparison.scanned_pages, changed_pages=comparison.changed_pages)

    def _compare_still(self, name: str, contents: Contents, sink: PageSink) -> RoundCount:
        """Compare what does not change meanwhile, and stays where it is: by several threads, as it is waited for."""
        comparison = Comparison(self._space(name), sink, keeps=False)

        def judge(group: tuple[tuple[Pages, Rows], ...]) -> list[Judged]:
            return [comparison.judge(pages, rows) for pages, rows in group]

        try:
            with ThreadPoolExecutor(_THREADS, "compare") as pool:
                for group in pool.map(judge, _groups(contents)):
                    for judged in group:
                        comparison.send(judged)
            comparison.flush()
        finally:
            comparison.close()
        return RoundCount(scanned_pages=comparison.scanned_pages, changed_pages=comparison.changed_pages)

    def _space(self, name: str) -> Space:
        if name not in self._spaces:
            self._spaces[name] = Space(name, self._spool, KnownSpace(self._known, name))
        return self._spaces[name]


def _groups(contents: Contents) -> Iterator[tuple[tuple[Pages, Rows], ...]]:
    while group := tuple(islice(contents, _BATCHES_AT_ONCE)):
        yield group


def _sum(counts: Iterable[RoundCount]) -> RoundCount:
    scanned = changed = 0
    for count in counts:
        scanned += count.scanned_pages
        changed += count.changed_pages
    return RoundCount(scanned_pages=scanned, changed_pages=changed)
