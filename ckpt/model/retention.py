"""Which checkpoints a retention policy keeps.

Rules:
* Each job is judged by itself; checkpoints without a job are one more group.
* A policy's rules are independent of each other, as in restic: a checkpoint is kept if any of them keeps it. (In
  borg what one rule keeps does not count for the next; then a more generous policy could keep less.)
* Hours, days and ISO weeks are those of UTC. The newest of each is kept, and one without a checkpoint does not
  count: after a pause of a year, the last seven days that have any are still there.
* An instant of a group is kept as a whole if any checkpoint of it is, and the newest complete one of each group is
  always kept.
* A tagged checkpoint is always kept and does not count: to pin one never costs another, and `keep_last` of N
  leaves the N newest of what is not pinned.
* Nothing is kept for being the oldest, as restic and borg do while a rule is not used up: a checkpoint may be as
  big as its workload, and who wants the first one kept tags it.
* Newest means what it means in the store: by `created_ns`, then by id. No clock is asked, so one that was set
  back or ran ahead changes which period a checkpoint is filed under, and no more: the newest of a job, which
  JOB@latest names, is kept by every policy.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from ckpt.errors import Usage
from ckpt.model.group import needed_by_instants
from ckpt.model.reports import StoredCheckpoint
from ckpt.units import SECOND, CheckpointId, JobName, Nanoseconds

_PERIODS: Final = (("hourly", "%Y-%m-%dT%H"), ("daily", "%Y-%m-%d"), ("weekly", "%G-W%V"))
"""From a rule's name to the name of an instant's period, finest first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionPolicy:
    """How many to keep of each job: the newest, and the newest of each hour, day and week that has any.

    Raises:
        Usage: nothing would be kept, or a number is negative.
    """

    keep_last: int = 0
    keep_hourly: int = 0
    keep_daily: int = 0
    keep_weekly: int = 0

    def __post_init__(self) -> None:
        numbers = (self.keep_last, self.keep_hourly, self.keep_daily, self.keep_weekly)
        if min(numbers) < 0:
            raise Usage(problem="A number of checkpoints to keep cannot be negative.")
        if max(numbers) == 0:
            raise Usage(
                problem="This policy keeps nothing.",
                remedy="Say how many to keep: --keep-last N, --keep-hourly N, --keep-daily N or --keep-weekly N. "
                "To remove checkpoints by name, there is 'ckpt rm'.",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What becomes of one checkpoint: why it is kept ("last 1", "daily 2026-11-25"); no reason, and it goes."""

    checkpoint: StoredCheckpoint
    reasons: tuple[str, ...]

    @property
    def is_kept(self) -> bool:
        """Whether there is a reason to keep it."""
        return bool(self.reasons)


def decide(checkpoints: Iterable[StoredCheckpoint], policy: RetentionPolicy) -> tuple[Decision, ...]:
    """What the policy makes of each checkpoint, oldest first; the order of `checkpoints` does not matter."""
    newest_first = sorted(checkpoints, key=_age, reverse=True)
    reasons: dict[CheckpointId, list[str]] = {
        stored.id: [f"tagged {tag}" for tag in sorted(stored.tags)] for stored in newest_first
    }
    for group in _by_job(stored for stored in newest_first if not stored.tags):
        for rank, stored in enumerate(group[: policy.keep_last], start=1):
            reasons[stored.id].append(f"last {rank}")
        numbers = (policy.keep_hourly, policy.keep_daily, policy.keep_weekly)
        for (rule, form), number in zip(_PERIODS, numbers, strict=True):
            for period, stored in _newest_of_periods(group, form)[:number]:
                reasons[stored.id].append(f"{rule} {period}")
    kept = [checkpoint for checkpoint, why in reasons.items() if why]
    for checkpoint, why_too in needed_by_instants(newest_first, kept).items():
        reasons[checkpoint].append(why_too)
    return tuple(
        Decision(checkpoint=stored, reasons=tuple(reasons[stored.id])) for stored in reversed(newest_first)
    )


def _age(stored: StoredCheckpoint) -> tuple[Nanoseconds, CheckpointId]:
    return stored.checkpoint.created_ns, stored.id


def _by_job(checkpoints: Iterable[StoredCheckpoint]) -> Iterable[list[StoredCheckpoint]]:
    groups: dict[JobName | None, list[StoredCheckpoint]] = {}
    for stored in checkpoints:
        groups.setdefault(stored.checkpoint.job, []).append(stored)
    return groups.values()


def _newest_of_periods(newest_first: list[StoredCheckpoint], form: str) -> list[tuple[str, StoredCheckpoint]]:
    """The first of each period, with the period's name, in the same order."""
    found: dict[str, StoredCheckpoint] = {}
    for stored in newest_first:
        instant = datetime.fromtimestamp(stored.checkpoint.created_ns // SECOND, UTC)
        found.setdefault(instant.strftime(form), stored)
    return list(found.items())
