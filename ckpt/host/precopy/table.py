"""Where in the spool the pages of one space are.

Rule: 16 bytes for each page, and none for what is not there.
"""

from __future__ import annotations

import numpy as np

from ckpt.host.precopy.runs import Pages

ABSENT = -1
"""The place of a page that is not there."""


class PageTable:
    """The places of pages; what is put in is found after the next settle()."""

    def __init__(self) -> None:
        self._pages: Pages = np.empty(0, np.int64)
        self._places: Pages = np.empty(0, np.int64)
        self._new: list[tuple[Pages, Pages]] = []

    def find(self, pages: Pages) -> Pages:
        """The place of each page, ABSENT for what is not there; the pages ascend."""
        if not len(self._pages) or not len(pages):
            return np.full(len(pages), ABSENT, np.int64)
        first = int(np.searchsorted(self._pages, pages[0]))
        # Most often they are all there, as neighbours.
        if np.array_equal(self._pages[first : first + len(pages)], pages):
            return self._places[first : first + len(pages)]
        at = np.minimum(np.searchsorted(self._pages, pages), len(self._pages) - 1)
        return np.where(self._pages[at] == pages, self._places[at], ABSENT)

    def put(self, pages: Pages, places: Pages) -> None:
        """Note the places of pages, in place of earlier ones, or that they are ABSENT from now on."""
        self._new.append((pages.copy(), places.copy()))

    def settle(self) -> None:
        """Let what was put in be found."""
        if not self._new:
            return
        pages = np.concatenate((self._pages, *(new for new, _ in self._new)))
        places = np.concatenate((self._places, *(new for _, new in self._new)))
        self._new.clear()
        order = np.argsort(pages, kind="stable")
        pages, places = pages[order], places[order]
        # Of the same page the last one counts: it was put in after the others.
        last = np.append(pages[1:] != pages[:-1], np.True_)
        self._pages, self._places = pages[last], places[last]
