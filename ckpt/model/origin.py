"""Where a workload came from that was restored."""

from __future__ import annotations

from dataclasses import dataclass

from ckpt.units import CheckpointId


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """A checkpoint of a store, or the migration with this id: one of the two. `group` is the one that it was in."""

    checkpoint: CheckpointId | None = None
    migration: str = ""
    group: str = ""
