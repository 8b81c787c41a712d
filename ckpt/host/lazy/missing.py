"""Which pages a process still lacks, where it has the room for them now, and where they were in the images."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from typing import NamedTuple, Self


class Piece(NamedTuple):
    """Missing memory: [start, end) now, and where it began in the images."""

    start: int
    end: int
    image: int

    def part(self, start: int, end: int) -> Piece:
        """What of it lies in this range, which must touch it."""
        start, end = max(start, self.start), min(end, self.end)
        return Piece(start, end, self.image + start - self.start)


class Missing:
    """Pieces that do not overlap, in the order of their addresses."""

    def __init__(self, pieces: Iterable[Piece] = ()) -> None:
        self._pieces = sorted(pieces)
        self._moved = sum(piece.start != piece.image for piece in self._pieces)

    def __iter__(self) -> Iterator[Piece]:
        return iter(self._pieces)

    def __bool__(self) -> bool:
        return bool(self._pieces)

    def copy(self) -> Self:
        """The same, on its own."""
        return type(self)(self._pieces)

    def at(self, address: int) -> Piece | None:
        """The piece that has this address."""
        found = next(iter(self._overlapping(address, address + 1)), None)
        return found and found[1]

    def of_image(self, start: int, end: int) -> list[Piece]:
        """What is missing of this range of the images."""
        if not self._moved:
            return [piece.part(start, end) for _, piece in self._overlapping(start, end)]
        return [
            piece.part(start - piece.image + piece.start, end - piece.image + piece.start)
            for piece in self._pieces
            if piece.image < end and start < piece.image + piece.end - piece.start
        ]

    def drop(self, start: int, end: int) -> None:
        """Nothing of this range is missing any more."""
        found = self._overlapping(start, end)
        if not found:
            return
        kept = [
            part
            for _, piece in found
            for part in (piece.part(piece.start, start), piece.part(end, piece.end))
            if part.start < part.end
        ]
        first, last = found[0][0], found[-1][0]
        self._moved += sum(piece.start != piece.image for piece in kept)
        self._moved -= sum(piece.start != piece.image for _, piece in found)
        self._pieces[first : last + 1] = sorted(kept)

    def move(self, start: int, to: int, size: int) -> None:
        """What was there is at another place now; what was there before has gone."""
        parts = [piece.part(start, start + size) for _, piece in self._overlapping(start, start + size)]
        self.drop(start, start + size)
        self.drop(to, to + size)
        moved = [Piece(part.start - start + to, part.end - start + to, part.image) for part in parts]
        self._moved += sum(piece.start != piece.image for piece in moved)
        self._pieces = sorted((*self._pieces, *moved))

    def _overlapping(self, start: int, end: int) -> list[tuple[int, Piece]]:
        found = []
        place = max(0, bisect_right(self._pieces, (start,)) - 1)
        while place < len(self._pieces) and self._pieces[place].start < end:
            if self._pieces[place].end > start:
                found.append((place, self._pieces[place]))
            place += 1
        return found
