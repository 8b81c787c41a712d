"""Which checkpoints go so that a store fits into a size, oldest first.

Rule: what a checkpoint frees depends on what else is kept, and a little on how packs are filled: so it is reckoned
before, and looked at after each removal.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ckpt.model.reports import SweepReport
from ckpt.units import ByteCount, CheckpointId


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """How a store's space is asked for and freed.

    `used` is what all its objects take. `preview` tells what the removal of these checkpoints would free, and `remove`
    removes them.
    """

    used: Callable[[], ByteCount]
    preview: Callable[[tuple[CheckpointId, ...]], SweepReport]
    remove: Callable[[tuple[CheckpointId, ...]], SweepReport]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """What went, and what the store takes now: more than the limit if nothing was left that may go."""

    removed: tuple[CheckpointId, ...]
    used_bytes: ByteCount
    report: SweepReport


def fit(space: Space, limit: ByteCount, removable: Sequence[CheckpointId]) -> Fit:
    """Remove as few of `removable`, which are in the order in which they go, as bring the store below the limit.

    Raises:
        ObjectMissing, ObjectCorrupt, FormatUnknown, Locked: as Store.remove() does.
    """
    left = tuple(removable)
    removed: tuple[CheckpointId, ...] = ()
    reports: list[SweepReport] = []
    while (used := space.used()) > limit and left:
        going = left[: enough(space, ByteCount(used - limit), left)]
        reports.append(space.remove(going))
        removed, left = removed + going, left[len(going) :]
    return Fit(removed=removed, used_bytes=used, report=_sum(reports))


def enough(space: Space, wanted: ByteCount, removable: tuple[CheckpointId, ...]) -> int:
    """How many of the first ones must go to free so much; all of them where even that is too little. At least one."""
    least, most = 1, len(removable)
    while least < most:
        middle = (least + most) // 2
        if space.preview(removable[:middle]).freed_bytes >= wanted:
            most = middle
        else:
            least = middle + 1
    return least


def _sum(reports: Sequence[SweepReport]) -> SweepReport:
    return SweepReport(
        removed_objects=sum(report.removed_objects for report in reports),
        freed_bytes=ByteCount(sum(report.freed_bytes for report in reports)),
        repacked_bytes=ByteCount(sum(report.repacked_bytes for report in reports)),
    )
