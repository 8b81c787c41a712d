"""What stands in a saved directory and is never saved nor moved: a store of checkpoints, which would hold itself.

Rule: a directory is known by what stands in it (F50 to F54 of images/FORMAT.md), whoever made it: a restore does not know
where the store was at the dump.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

_IN_A_STORE: Final = frozenset(("config", "manifests", "packs", "placements"))


def is_store(names: Iterable[str]) -> bool:
    """Whether a directory with entries of these names is a store."""
    return _IN_A_STORE.issubset(names)
