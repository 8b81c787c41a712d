"""All pages of one space that have come: in levels, one of each round that brought new ones.

Rules: a page is in one level; coming again it is overwritten there. CRIU opens every level of a space at each
restore: there are at most LEVELS_MAX, and what is new after that goes to the last one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Final

from ckpt.host.received.durable import Unwritten, writing
from ckpt.host.received.level import Level
from ckpt.host.received.table import Pieces
from ckpt.model.pages import PageRun

LEVELS_MAX: Final = 24


class ReceivedSpace:
    """The pages of a space, in a directory of its own.

    Raises (every method): OsRefused, NoSpace: a file cannot be read or written; ObjectCorrupt: one is damaged.
    """

    def __init__(self, directory: str, pages_id: int, unwritten: Unwritten) -> None:
        """Open what is in the directory, which is made if it is not there.

        Args:
            directory: Its place.
            pages_id: The number that its pages files will have in image sets.
            unwritten: Is told what must be written out.
        """
        self._directory = directory
        self._unwritten = unwritten
        self.pages_id: Final = pages_id
        with writing(os.path.dirname(directory)):
            os.makedirs(directory, 0o700, exist_ok=True)
            count = sum(name.endswith(".pages") for name in os.listdir(directory))
        unwritten.add(os.path.dirname(directory))
        self._levels = [self._level(number) for number in range(count)]
        self._is_round_over = True

    @property
    def levels(self) -> tuple[Level, ...]:
        """The levels, the oldest first."""
        return tuple(self._levels)

    def write(self, pieces: Pieces, content: memoryview) -> None:
        """Put pages where they are already, and what is new into the level of this round."""
        for level in reversed(self._levels):
            pieces = level.write(pieces, content)
            if not len(pieces.first):
                return
        if not self._levels or (self._is_round_over and len(self._levels) < LEVELS_MAX):
            self._levels.append(self._level(len(self._levels)))
        self._is_round_over = False
        self._levels[-1].append(pieces, content)

    def end_round(self) -> None:
        """What is new from here on goes to another level; all that are there have their page maps."""
        self._is_round_over = True
        lowest = behind = 0
        for level in self._levels:
            level.close(self.pages_id, (lowest, behind))
            if level.table.pages:
                first, end = int(level.table.first[0]), int(level.table.end[-1])
                lowest, behind = (min(lowest, first), max(behind, end)) if behind else (first, end)

    def missing(self, pieces: Pieces) -> Pieces:
        """What has not come of these pages."""
        for level in reversed(self._levels):
            pieces = level.table.split(pieces)[1]
        return pieces

    def digests(self, pages_max: int) -> Iterator[tuple[list[PageRun], bytes]]:
        """The SHA-256 of each page, one after another, of at most `pages_max` pages at once."""
        for level in self._levels:
            yield from level.digests(pages_max)

    def _level(self, number: int) -> Level:
        return Level(f"{self._directory}/{number}", self._unwritten)
