"""How much of each mapping is stored, and the sums by kind.

Rule: shared memory is stored once, in a space of its own: the mappings that show it tell how much of that they show,
and the sums of a process leave it out.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate

from ckpt.model.contents import TreeContents
from ckpt.model.memory import AddressSpace, Area, AreaKind, PageRun
from ckpt.units import PAGE_BYTES, ByteCount


@dataclass(frozen=True, slots=True, kw_only=True)
class AreaUse:
    """A mapping: what of it is stored, and what is known to be zeros."""

    area: Area
    stored_bytes: ByteCount
    zero_bytes: ByteCount


@dataclass(frozen=True, slots=True, kw_only=True)
class SpaceUse:
    """An address space; its sums are of what it has stored itself."""

    space: AddressSpace
    areas: tuple[AreaUse, ...]
    size_bytes: ByteCount
    stored_bytes: ByteCount
    zero_bytes: ByteCount


@dataclass(frozen=True, slots=True, kw_only=True)
class KindUse:
    """All mappings of one kind; of shared memory, what is stored of it elsewhere is counted as often as it is shown."""

    kind: AreaKind
    areas: int
    size_bytes: ByteCount
    stored_bytes: ByteCount


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryUse:
    """The memory of one tree."""

    spaces: tuple[SpaceUse, ...]

    def kinds_of(self, *spaces: SpaceUse) -> tuple[KindUse, ...]:
        """The sums by kind over these spaces, or all; the largest in the store first."""
        areas = [each for space in spaces or self.spaces for each in space.areas]
        found = [
            KindUse(
                kind=kind,
                areas=sum(1 for each in areas if each.area.kind is kind),
                size_bytes=ByteCount(sum(each.area.size_bytes for each in areas if each.area.kind is kind)),
                stored_bytes=ByteCount(sum(each.stored_bytes for each in areas if each.area.kind is kind)),
            )
            for kind in AreaKind
        ]
        return tuple(
            sorted((each for each in found if each.areas), key=lambda each: each.stored_bytes, reverse=True)
        )


def memory_use(contents: Iterable[TreeContents]) -> Iterator[tuple[TreeContents, MemoryUse]]:
    """What is stored of each tree's memory."""
    for tree in contents:
        stored = {space.name: _Stored(space.runs) for space in tree.memory}
        yield tree, MemoryUse(spaces=tuple(_space(space, stored) for space in tree.memory))


class _Stored:
    """How many pages of a space are stored up to each page."""

    def __init__(self, runs: tuple[PageRun, ...]) -> None:
        self._runs = runs
        self._firsts = [run.page for run in runs]
        self._stored = [0, *accumulate(run.count if run.chunk is not None else 0 for run in runs)]
        self._zero = [0, *accumulate(run.count if run.chunk is None else 0 for run in runs)]

    def within(self, first: int, count: int) -> tuple[ByteCount, ByteCount]:
        """How many bytes of these pages are stored, and how many are zeros."""
        begin, end = self._before(first), self._before(first + count)
        return ByteCount((end[0] - begin[0]) * PAGE_BYTES), ByteCount((end[1] - begin[1]) * PAGE_BYTES)

    @property
    def whole(self) -> tuple[ByteCount, ByteCount]:
        """The same for all pages."""
        return ByteCount(self._stored[-1] * PAGE_BYTES), ByteCount(self._zero[-1] * PAGE_BYTES)

    def _before(self, page: int) -> tuple[int, int]:
        number = bisect_right(self._firsts, page)
        stored, zero = self._stored[number], self._zero[number]
        if number:
            run = self._runs[number - 1]
            beyond = max(0, run.page + run.count - page)
            stored, zero = (stored, zero - beyond) if run.chunk is None else (stored - beyond, zero)
        return stored, zero


def _space(space: AddressSpace, stored: dict[str, _Stored]) -> SpaceUse:
    stored_bytes, zero_bytes = stored[space.name].whole
    end = (space.runs[-1].page + space.runs[-1].count) * PAGE_BYTES if space.runs else 0
    return SpaceUse(
        space=space,
        areas=tuple(_area(area, stored[space.name], stored) for area in space.areas),
        size_bytes=ByteCount(sum(area.size_bytes for area in space.areas) if space.pids else end),
        stored_bytes=stored_bytes,
        zero_bytes=zero_bytes,
    )


def _area(area: Area, own: _Stored, stored: dict[str, _Stored]) -> AreaUse:
    found, zero = own.within(area.start // PAGE_BYTES, area.pages)
    if area.shared_space in stored:
        there, zero_there = stored[area.shared_space].within(area.offset // PAGE_BYTES, area.pages)
        found, zero = ByteCount(found + there), ByteCount(zero + zero_there)
    return AreaUse(area=area, stored_bytes=found, zero_bytes=zero)
