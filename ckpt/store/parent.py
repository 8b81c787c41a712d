"""The checkpoint before: which of its chunks to compare a new file's chunks with.

Rules: F60 and F91 of images/FORMAT.md. Pages are compared with what stood at the same address; what has no
addresses, with the same place in the file of the same name.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from typing import NamedTuple

from ckpt.codec.placement import PlacedFile, Placement
from ckpt.model.checkpoint import AddressRun, Checkpoint
from ckpt.store.building import PackTable
from ckpt.store.contents import PlacedContents
from ckpt.store.packs import Packs
from ckpt.units import CHUNK_BYTES


class Aligned(NamedTuple):
    """Chunks of a new file, and those of the parent's file that they are compared with."""

    start: int
    length: int
    file: PlacedFile
    chunk: int


class Parent:
    """A checkpoint whose packs nobody removes while it is used."""

    def __init__(self, packs: Packs, placement: Placement, checkpoint: Checkpoint, table: PackTable) -> None:
        self.contents = PlacedContents(packs, placement)
        self._placement = placement
        self._table = table
        by_root = {file.root: file for file in placement.files}
        self._by_name = {file.name: by_root[file.root] for file in checkpoint.files if file.root in by_root}
        self._spaces: dict[str, list[tuple[AddressRun, PlacedFile]]] = {}
        for file in placement.files:
            for run in file.addresses:
                self._spaces.setdefault(run.space, []).append((run, file))
        for runs in self._spaces.values():
            runs.sort(key=lambda pair: pair[0].page)

    def place_of(self, pack: int) -> int:
        """The place in the new table of what is at this place in the parent's."""
        return self._table.place_of(self._placement.packs[pack])

    def aligned(self, name: str, size_bytes: int, addresses: tuple[AddressRun, ...]) -> Alignment:
        """What each chunk of a new file is to be compared with."""
        if addresses:
            found = sorted(
                (piece for run in addresses for piece in self._at(run)), key=lambda piece: piece.start
            )
            return Alignment(self, _without_overlaps(found))
        file = self._by_name.get(name)
        count = min(-(-size_bytes // CHUNK_BYTES), file.chunk_count) if file else 0
        return Alignment(self, [Aligned(0, count, file, 0)] if file and count else [])

    def _at(self, run: AddressRun) -> Iterator[Aligned]:
        """The parent's chunks at the addresses of a run."""
        old = self._spaces.get(run.space, [])
        place = max(0, bisect_right(old, run.page, key=lambda pair: pair[0].page) - 1)
        for before, file in old[place:]:
            if before.page >= run.page + run.count:
                return
            first = max(before.page, run.page)
            end = min(before.page + before.count, run.page + run.count)
            if first < end:
                yield Aligned(
                    run.chunk + first - run.page, end - first, file, before.chunk + first - before.page
                )


def _without_overlaps(pieces: list[Aligned]) -> list[Aligned]:
    """Those that begin behind the ones before: the parent may have had a page twice."""
    kept: list[Aligned] = []
    for piece in pieces:
        if not kept or kept[-1].start + kept[-1].length <= piece.start:
            kept.append(piece)
    return kept


class Alignment:
    """Pieces in the order of `start`, none over another."""

    def __init__(self, parent: Parent, pieces: list[Aligned]) -> None:
        self.parent = parent
        self._pieces = pieces
        self._starts = [piece.start for piece in pieces]

    def within(self, first: int, count: int) -> Iterator[Aligned]:
        """The parts of pieces between chunks `first` and `first + count` of the new file."""
        end = first + count
        for place in range(max(0, bisect_right(self._starts, first) - 1), len(self._pieces)):
            start, length, file, chunk = self._pieces[place]
            if start >= end:
                return
            skipped = max(0, first - start)
            left = min(length, end - start) - skipped
            if left > 0:
                yield Aligned(start + skipped, left, file, chunk + skipped)
