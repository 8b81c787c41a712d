"""Pages compared with what was sent of one space; what differs goes out."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ckpt.host.precopy.calls import differing
from ckpt.host.precopy.known import KnownSpace
from ckpt.host.precopy.runs import Mask, Pages, Rows
from ckpt.host.precopy.sending import Outgoing, PageSink
from ckpt.host.precopy.spool import Spool
from ckpt.host.precopy.table import ABSENT, PageTable


class Space:
    """One space: what was sent of it, and what the other side had before."""

    def __init__(self, name: str, spool: Spool, known: KnownSpace) -> None:
        self.name = name
        self.table = PageTable()
        self.spool = spool
        self.known = known

    def count_changed(self, pages: Pages, rows: Rows) -> int:
        """How many of these are not there as they are now; nothing is sent or kept."""
        places = self.table.find(pages)
        old = places != ABSENT
        changed = len(pages) - int(old.sum())
        if old.any():
            changed += int(differing(rows[old], self.spool.rows(places[old])).sum())
        return changed


class Judged(NamedTuple):
    """Pages with what is in them, their places in the spool, and which of them are to be sent."""

    pages: Pages
    rows: Rows
    places: Pages
    chosen: Pages


class Comparison:
    """One pass over a space. `keeps`: what differs is kept in the spool, to be compared with again."""

    def __init__(self, space: Space, sink: PageSink, *, keeps: bool) -> None:
        self._space = space
        self._keeps = keeps
        self._outgoing = Outgoing(space.name, sink, space.table, space.spool, keeps=keeps)
        self.scanned_pages = 0
        self.changed_pages = 0

    def take(self, pages: Pages, rows: Rows) -> None:
        """Compare these; none may be given twice in one pass.

        Raises:
            NoSpace, OsRefused: the spool cannot be written.
        """
        self.send(self.judge(pages, rows))

    def judge(self, pages: Pages, rows: Rows) -> Judged:
        """Which of these are to be sent; without `keeps` several threads may ask."""
        places = self._space.table.find(pages)
        return Judged(pages, rows, places, np.flatnonzero(self._are_to_send(pages, places, rows)))

    def send(self, judged: Judged) -> None:
        """Send what was judged so, in the order in which it was to be judged.

        Raises:
            NoSpace, OsRefused: the spool cannot be written.
        """
        pages, rows, places, chosen = judged
        self.scanned_pages += len(pages)
        if not len(chosen):
            return
        self.changed_pages += len(chosen)
        self._outgoing.add(pages[chosen], places[chosen], rows if len(chosen) == len(rows) else rows[chosen])

    def flush(self) -> None:
        """Send the rest.

        Raises:
            NoSpace, OsRefused: the spool cannot be written.
        """
        self._outgoing.flush()

    def close(self) -> None:
        """Let the next pass find what was sent in this one, whether it came to its end or not."""
        self._space.table.settle()

    def _are_to_send(self, pages: Pages, places: Pages, rows: Rows) -> Mask:
        is_new = places == ABSENT
        if not is_new.any():
            return differing(rows, self._space.spool.rows(places))
        chosen: Mask = is_new.copy()
        if not is_new.all():
            old = ~is_new
            chosen[old] = differing(rows[old], self._space.spool.rows(places[old]))
        new = np.flatnonzero(is_new)
        had = new[self._space.known.have(pages[new], rows[new])]
        if len(had):
            chosen[had] = False
            if self._keeps:
                self._space.table.put(pages[had], self._space.spool.append(rows[had]))
        return chosen
