"""The memory of processes as a store has it: where each page lies in the pages files, read when it is asked for.

Rule: whoever reads verifies every byte at every read; what it raises is told as it is.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

from ckpt.model.checkpoint import StoredFile
from ckpt.model.memory import PageRun
from ckpt.units import PAGE_BYTES, Pid

Read: TypeAlias = Callable[[StoredFile, int, int], bytes]
"""Gives the verified bytes of a file, from an offset on, so many."""


class StoredPages:
    """Fits ckpt.host.lazy.serving.PageSource."""

    def __init__(self) -> None:
        """Have the memory of nobody yet."""
        self._spaces: Final[dict[tuple[Pid, Pid], _Space]] = {}

    def add(self, root: Pid, pid: Pid, file: StoredFile, runs: Sequence[PageRun], read: Read) -> None:
        """Have these pages of process `pid` of the tree `root`: ascending, with their places in this file."""
        self._spaces[root, pid] = _Space(file, runs, read)

    def read(self, root: Pid, pid: Pid, address: int, into: memoryview) -> None:
        """Fill this with what the process had from this address on.

        Raises:
            KeyError: nothing is known of the process, or of some of the pages.
            CkptError: what reading raised.
        """
        self._spaces[root, pid].read(address // PAGE_BYTES, into)


class _Space:
    def __init__(self, file: StoredFile, runs: Sequence[PageRun], read: Read) -> None:
        self._file = file
        self._runs = runs
        self._firsts = [run.page for run in runs]
        self._read = read

    def read(self, page: int, into: memoryview) -> None:
        done = 0
        while done < len(into):
            place = bisect_right(self._firsts, page) - 1
            run = self._runs[place] if place >= 0 else None
            if run is None or run.chunk is None or page >= run.page + run.count:
                raise KeyError(f"{page * PAGE_BYTES:#x}")
            size = min((run.page + run.count - page) * PAGE_BYTES, len(into) - done)
            offset = (run.chunk + page - run.page) * PAGE_BYTES
            into[done : done + size] = self._read(self._file, offset, size)
            done, page = done + size, page + size // PAGE_BYTES
