"""Pages on their way out: collected to large pieces, handed over, and only then noted as sent.

Rules:
- What is noted as sent is what the sink has taken. A page whose sending broke off counts as never sent.
- A page is added once between two calls of flush().
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

import numpy as np

from ckpt.host.precopy.runs import WORDS, Pages, Rows, as_values, runs_of
from ckpt.host.precopy.spool import Spool
from ckpt.host.precopy.table import ABSENT, PageTable
from ckpt.model.pages import PageRun

PIECE_PAGES: Final = 1024
"""At most as many are handed over at once: 4 MiB."""


class PageSink(Protocol):
    """Where pages go."""

    def pages(self, space: str, runs: Sequence[PageRun], content: memoryview) -> None:
        """Take pages, at most 4 MiB: the runs ascend, their bytes follow one another. `content` is void afterwards."""


class Outgoing:
    """Sends pages of one space. `keeps`: what was sent is kept in the spool; else it is only unknown from then on."""

    def __init__(self, space: str, sink: PageSink, table: PageTable, spool: Spool, *, keeps: bool) -> None:
        self._space = space
        self._sink = sink
        self._table = table
        self._spool = spool
        self._keeps = keeps
        self._pages = np.empty(PIECE_PAGES, np.int64)
        self._places = np.empty(PIECE_PAGES, np.int64)
        self._rows: Rows = np.empty((PIECE_PAGES, WORDS), np.uint64)
        self._count = 0

    def add(self, pages: Pages, places: Pages, rows: Rows) -> None:
        """Send these, which ascend, now or by flush(); `places` are those in the spool, ABSENT for new ones.

        Raises:
            NoSpace, OsRefused: the spool cannot be written.
        """
        if self._count + len(pages) > PIECE_PAGES or (
            self._count and pages[0] < self._pages[self._count - 1]
        ):
            self.flush()
        end = self._count + len(pages)
        self._pages[self._count : end] = pages
        self._places[self._count : end] = places
        self._rows[self._count : end] = rows
        self._count = end

    def flush(self) -> None:
        """Send what was added.

        Raises:
            NoSpace, OsRefused: the spool cannot be written.
        """
        if not self._count:
            return
        pages, places = self._pages[: self._count], self._places[: self._count]
        rows = self._rows[: self._count]
        self._count = 0
        try:
            self._sink.pages(self._space, as_values(runs_of(pages)), rows.data.cast("B"))
            if self._keeps:
                self._keep(pages, places, rows)
            else:
                self._forget(pages)
        except BaseException:
            self._forget(pages)
            raise

    def _keep(self, pages: Pages, places: Pages, rows: Rows) -> None:
        new = places == ABSENT
        if new.any():
            self._table.put(pages[new], self._spool.append(rows[new]))
        if not new.all():
            self._spool.replace(places[~new], rows[~new])

    def _forget(self, pages: Pages) -> None:
        self._table.put(pages, np.full(len(pages), ABSENT, np.int64))
