"""What is told while many bytes move, to whoever watches.

Rules: whoever moves bytes says first how many they will be, if that can be known, and then each part as it is done; in
the end as much is done as was expected, unless something went wrong. Parts are about 1 MiB, so that telling costs nothing beside moving.
"""

from __future__ import annotations

from typing import Final, Protocol


class Progress(Protocol):
    """Somebody who may be watching; may be told by several threads."""

    @property
    def is_watched(self) -> bool:
        """Whether it is worth any work to find out what can be expected."""

    def expect(self, size_bytes: int) -> None:
        """So many bytes more will be moved in this phase."""

    def moved(self, size_bytes: int) -> None:
        """So many bytes more are done."""


class Unwatched:
    """Nobody watches. Fits Progress."""

    is_watched: Final = False

    def expect(self, size_bytes: int) -> None:
        """Nothing."""

    def moved(self, size_bytes: int) -> None:
        """Nothing."""


UNWATCHED: Final = Unwatched()
