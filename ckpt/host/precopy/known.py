"""What the other side has already, told by digests: an earlier attempt sent it, or an earlier move.

Rule: a digest that does not fit sends the page, so that wrong ones cost time and nothing else.
"""

from __future__ import annotations

import hashlib
from typing import Final, Protocol

import numpy as np

from ckpt.host.precopy.runs import Pages, Rows

_DIGEST_BYTES: Final = 32


class KnownPages(Protocol):
    """What the target says it has already."""

    def digests(self, space: str) -> tuple[Pages, bytes] | None:
        """The pages of a space, ascending, and the SHA-256 of each in this order; None for none."""


class KnownSpace:
    """The known pages of one space."""

    def __init__(self, known: KnownPages | None, space: str) -> None:
        """Ask for them."""
        said = known.digests(space) if known is not None else None
        self._pages, self._digests = said if said is not None else (np.empty(0, np.int64), b"")

    def have(self, pages: Pages, rows: Rows) -> Pages:
        """The places of the pages that the other side has with this very content."""
        if not len(self._pages):
            return np.empty(0, np.int64)
        at = np.minimum(np.searchsorted(self._pages, pages), len(self._pages) - 1)
        named = np.flatnonzero(self._pages[at] == pages)
        return np.array(
            [place for place in named if self._digest(at[place]) == _digest(rows[place])], np.int64
        )

    def _digest(self, number: int) -> bytes:
        return self._digests[_DIGEST_BYTES * number : _DIGEST_BYTES * (number + 1)]


def _digest(row: Rows) -> bytes:
    return hashlib.sha256(row.data).digest()
