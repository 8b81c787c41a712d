"""Which pages a pages file has, and where in it: arithmetic with whole arrays, no file is touched.

Rules: pages are numbers of a space, slots are numbers of pages in the file. Pieces of a space are ascending and do
not overlap. A table costs 24 bytes for each piece whose neighbours in the space are not its neighbours in the file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from ckpt.model.pages import PageRun

Numbers: TypeAlias = npt.NDArray[np.int64]

PAGES_MAX: Final = 1 << 44
"""No page has this number or a higher one: addresses of tasks have at most 56 bits."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pieces:
    """The pages `first` … `end - 1` of each piece; their contents begin at the page `at` of a message."""

    first: Numbers
    end: Numbers
    at: Numbers

    @property
    def counts(self) -> Numbers:
        """How many pages each piece has."""
        return self.end - self.first


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Slots:
    """Where pages of a message lie in a file: those from `at` on, `count` of them, from `slot` on."""

    at: Numbers
    slot: Numbers
    count: Numbers

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        """`at`, `slot` and `count` of each stretch, as long as stretches can be."""
        return zip(self.at.tolist(), self.slot.tolist(), self.count.tolist(), strict=True)


def pieces_of(runs: Sequence[PageRun], pages: int) -> Pieces:
    """The runs of a message whose content has so many pages.

    Raises:
        ValueError: they are not ascending, overlap, are out of bounds, or do not fit the content; says which.
    """
    try:
        pairs = np.array(runs, dtype=np.int64).reshape(-1, 2)
    except (OverflowError, TypeError, ValueError) as error:
        raise ValueError("a run is not a pair of numbers of at most 63 bits") from error
    first, count = pairs[:, 0].copy(), pairs[:, 1].copy()
    if np.any((count < 1) | (count > pages)) or int(count.sum()) != pages:
        raise ValueError(f"{len(first)} runs do not name the {pages} pages that came with them")
    end = first + count
    if np.any((first < 0) | (end > PAGES_MAX)):
        raise ValueError(f"a run reaches beyond page {PAGES_MAX - 1:#x}")
    if np.any(first[1:] < end[:-1]):
        raise ValueError("the runs are not ascending")
    return Pieces(first=first, end=end, at=np.cumsum(count) - count)


class PageTable:
    """The pages of one file. Empty at first."""

    def __init__(self) -> None:
        self.pages = 0
        """How many there are."""
        self.is_ascending = True
        """Whether the file has them in the order of their numbers."""
        self._used = 0
        self._rows = np.empty((3, 16), dtype=np.int64)

    @classmethod
    def of(cls, first: Numbers, counts: Numbers) -> PageTable:
        """The table of a file that has these pieces one after another, in any order.

        Raises:
            ValueError: a page is there twice.
        """
        table = cls()
        if len(first):
            table.pages = int(counts.sum())
            table._insert(_stretches(first, np.cumsum(counts) - counts, counts))
            if np.any(table.first[1:] < table.end[:-1]):
                raise ValueError("a page is there twice")
            table.is_ascending = not np.any(table.slot[1:] < table.slot[:-1])
        return table

    @property
    def first(self) -> Numbers:
        """The first page of each piece, ascending."""
        return self._rows[0, : self._used]

    @property
    def end(self) -> Numbers:
        """The page behind each piece."""
        return self._rows[1, : self._used]

    @property
    def slot(self) -> Numbers:
        """Where the first page of each piece is in the file."""
        return self._rows[2, : self._used]

    def split(self, pieces: Pieces) -> tuple[Slots, Pieces]:
        """Where the pages that the file has are in it, and the pieces that it has not."""
        lowest = np.searchsorted(self.end, pieces.first, side="right")
        highest = np.searchsorted(self.first, pieces.end, side="left")
        hits = np.maximum(highest - lowest, 0)
        total = int(hits.sum())
        piece = np.repeat(np.arange(len(hits)), hits)
        own = np.arange(total) - np.repeat(np.cumsum(hits) - hits - lowest, hits)
        first = np.maximum(pieces.first[piece], self.first[own])
        end = np.minimum(pieces.end[piece], self.end[own])
        found = _stretches(
            pieces.at[piece] + first - pieces.first[piece],
            self.slot[own] + first - self.first[own],
            end - first,
        )
        if not total:
            return found, pieces
        # What lies between: from the beginning of a piece, or the end of what was found, to the next such place.
        left_first = np.sort(np.concatenate((pieces.first, end)))
        left_end = np.sort(np.concatenate((first, pieces.end)))
        is_left = left_first < left_end
        left_first, left_end = left_first[is_left], left_end[is_left]
        of = np.searchsorted(pieces.first, left_first, side="right") - 1
        at = pieces.at[of] + left_first - pieces.first[of]
        return found, Pieces(first=left_first, end=left_end, at=at)

    def append(self, pieces: Pieces) -> None:
        """Note that the pages of these pieces, which it has not yet, follow in the file on those that it has."""
        if not len(pieces.first):
            return
        counts = pieces.counts
        slots = self.pages + np.cumsum(counts) - counts
        joined = _stretches(pieces.first, slots, counts)
        self.pages += int(counts.sum())
        behind, slot_behind = self._last()
        if joined.at[0] < behind:
            self._insert(joined)
            return
        if joined.at[0] == behind and joined.slot[0] == slot_behind:
            self._rows[1, self._used - 1] += joined.count[0]
            joined = Slots(at=joined.at[1:], slot=joined.slot[1:], count=joined.count[1:])
        used = self._used + len(joined.at)
        if used > self._rows.shape[1]:
            rows = np.empty((3, max(used, self._rows.shape[1] * 3 // 2)), dtype=np.int64)
            rows[:, : self._used] = self._rows[:, : self._used]
            self._rows = rows
        self._rows[:, self._used : used] = joined.at, joined.at + joined.count, joined.slot
        self._used = used

    def sort(self) -> Iterator[tuple[int, int, int]]:
        """Change to the order of the pages' numbers; from where, to where and how many of the file's pages must go."""
        counts = self.end - self.first
        new = np.cumsum(counts) - counts
        moves = _stretches(self.slot, new, counts)
        merged = _stretches(self.first, new, counts)
        self._used = len(merged.at)
        self._rows = np.stack((merged.at, merged.at + merged.count, merged.slot))
        self.is_ascending = True
        return iter(moves)

    def _last(self) -> tuple[int, int]:
        """The page and the slot behind the last piece; none are lower than those of an empty table."""
        if not self._used:
            return -1, -1
        first, end, slot = self._rows[:, self._used - 1].tolist()
        return end, slot + end - first

    def _insert(self, joined: Slots) -> None:
        new = np.stack((joined.at, joined.at + joined.count, joined.slot))
        rows = np.concatenate((self._rows[:, : self._used], new), axis=1)
        self._rows = rows[:, np.argsort(rows[0], kind="stable")]
        self._used = self._rows.shape[1]
        self.is_ascending = False


def _stretches(one: Numbers, other: Numbers, count: Numbers) -> Slots:
    """Neighbours in both put together."""
    if not len(count):
        return Slots(at=one, slot=other, count=count)
    is_new = (one[1:] != one[:-1] + count[:-1]) | (other[1:] != other[:-1] + count[:-1])
    starts = np.concatenate(([0], np.flatnonzero(is_new) + 1))
    return Slots(at=one[starts], slot=other[starts], count=np.add.reduceat(count, starts))
