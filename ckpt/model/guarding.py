"""What a guard does about memory pressure: when it acts, by which steps, and on whom first.

A *guard* watches the memory of cgroups and acts before the kernel's OOM killer does. A *step* is one thing that it can
do, a *victim* the job (or cgroup) that it does it to, a *trigger* what must have happened before a step is taken.

Rules:
- Steps are taken in their order; after each it is looked whether the pressure is gone. A step whose trigger has not
  fired yet holds back those after it.
- One victim after the other, in the operator's order, each through all steps.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Final

from ckpt.errors import Usage
from ckpt.model.guard_steps import (
    AtOom,
    AtPsi,
    AtShare,
    MemoryReading,
    Reclaim,
    Step,
    StepName,
    TakeCheckpoint,
    Trigger,
)
from ckpt.model.target import TargetRef
from ckpt.model.workload import TargetKind
from ckpt.units import ByteCount, CheckpointId, JobName, Nanoseconds

AT_DEFAULT: Final = 0.9
MARGIN_DEFAULT: Final = 0.05
STEPS_MAX: Final = 32

_ROOM_MIN: Final = 16 << 20
_ROOM_SHARE: Final = 0.1
_LEAST_SHARE: Final = 0.001


class Event(StrEnum):
    """What made a guard act."""

    FOUND = "found"
    THRESHOLD = "threshold"
    OOM = "oom"
    PSI = "psi"
    ASKED = "asked"


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """When and how a guard acts. The pressure is gone when the usage is below `at` less `margin`, of the limit.

    `victims` are patterns of job names or of the last part of a cgroup's path, the first to go first; who matches none
    is spared. Empty takes all, the largest first. Those that match one pattern go by size, too.

    Raises:
        Usage: there is no step, or one that can never help.
    """

    at: Trigger = field(default_factory=lambda: AtShare(share=AT_DEFAULT))
    margin: float = MARGIN_DEFAULT
    steps: tuple[Step, ...] = field(default_factory=lambda: (Reclaim(), TakeCheckpoint()))
    victims: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= len(self.steps) <= STEPS_MAX:
            raise Usage(problem=f"A policy has 1 to {STEPS_MAX} steps, and this one has {len(self.steps)}.")
        if not 0 <= self.margin < self._lowest_share:
            raise Usage(
                problem=f"A margin of {self.margin:.0%} leaves nothing below {self._lowest_share:.0%}.",
                remedy="Act at a higher share, or give a policy with a smaller margin.",
            )

    @property
    def triggers(self) -> tuple[Trigger, ...]:
        """What the steps act on, each once, in their order."""
        return tuple(dict.fromkeys(self.trigger_of(step) for step in self.steps))

    @property
    def goal(self) -> float:
        """The share of the limit below which the pressure is gone."""
        return self._lowest_share - self.margin

    @property
    def shares(self) -> tuple[float, ...]:
        """The shares of the limit at which something is done, the lowest first."""
        return tuple(sorted(each.share for each in self.triggers if isinstance(each, AtShare)))

    def goal_from(self, reading: MemoryReading) -> float:
        """The share of the limit below which the pressure found with this reading is gone.

        Where tasks stood still for memory although the usage is below `goal`, it is the margin below that usage.
        """
        if reading.is_below(self.goal):
            return max(reading.share - self.margin, _LEAST_SHARE)
        return self.goal

    def trigger_of(self, step: Step) -> Trigger:
        """What the step acts on: its own trigger, or the policy's."""
        return step.at or self.at

    def due(self, taken: int, reading: MemoryReading, events: Collection[Event]) -> tuple[Step, ...]:
        """Of the steps after the first `taken`, those that are to be taken now, in their order."""
        found: list[Step] = []
        for step in self.steps[taken:]:
            if not _has_fired(self.trigger_of(step), reading, events):
                break
            found.append(step)
        return tuple(found)

    @property
    def _lowest_share(self) -> float:
        # Where nothing acts on a share, pressure is gone a little below the limit.
        return min(self.shares, default=1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """What is watched: `cgroup` is the memory cgroup with the limit, the job's own or the nearest above it.

    `job` is None where the user named a cgroup. `psi` is the file in which the kernel tells how long tasks waited, and
    `told_in` the directory in which it is told that the job has ended; "" for none.
    """

    cgroup: str
    job: JobName | None = None
    is_own: bool = True
    psi: str = ""
    told_in: str = ""

    @property
    def subject(self) -> str:
        """What people call it."""
        return f"job {self.job}" if self.job is not None else f"cgroup {self.cgroup}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Victim:
    """Who can be made to give memory back: a job, or where there is none all processes of a cgroup.

    `cgroup` is its memory cgroup, `usage` what it would free.
    """

    ref: TargetRef
    job: JobName | None
    cgroup: str
    usage: ByteCount

    @property
    def label(self) -> str:
        """What the patterns of a policy are compared with."""
        return self.job or self.cgroup.rpartition("/")[2]


class Result(StrEnum):
    """How a step went: DONE says nothing about the pressure."""

    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class StepOutcome:
    """One step that was taken, the memory afterwards (None: the cgroup is gone), and what there is to say.

    `slug` names the error of a step that failed; `checkpoint` is what the victim can be brought back from.
    """

    step: StepName
    result: Result
    after: MemoryReading | None
    detail: str = ""
    slug: str = ""
    checkpoint: CheckpointId | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Relief:
    """What was done about the pressure with one victim.

    `ended`: the victim does not run here any more. `relieved`: the pressure is gone.
    """

    victim: Victim
    outcomes: tuple[StepOutcome, ...]
    ended: bool
    relieved: bool

    @property
    def checkpoint(self) -> CheckpointId | None:
        """What the victim can be brought back from."""
        return next((each.checkpoint for each in self.outcomes if each.checkpoint is not None), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """Who was checkpointed and ended, and comes back when there is room in `watched` for the `usage` that it had.

    `checkpoint` None is not known to be durable yet. `cgroup` is its memory cgroup, which had the limit `limit` (0: none
    of its own). `goal` is the share of the watched cgroup's limit that must not be passed by coming back.
    """

    ref: TargetRef
    checkpoint: CheckpointId | None
    store: str
    watched: str
    cgroup: str
    limit: ByteCount
    usage: ByteCount
    goal: float
    since_ns: Nanoseconds

    @property
    def job(self) -> JobName | None:
        """The job's name; None for what is none."""
        return JobName(self.ref.name) if self.ref.kind is TargetKind.JOB else None


def order_victims(policy: Policy, victims: Sequence[Victim]) -> tuple[Victim, ...]:
    """The victims in the order in which they go; those that the policy spares are left out."""
    by_size = sorted(victims, key=lambda victim: (-victim.usage, victim.label))
    if not policy.victims:
        return tuple(by_size)
    ranked = [(_rank(policy, victim), victim) for victim in by_size]
    return tuple(
        victim
        for _, victim in sorted(
            ((rank, victim) for rank, victim in ranked if rank is not None), key=lambda each: each[0]
        )
    )


def has_room(waiting: Waiting, reading: MemoryReading, available: ByteCount) -> bool:
    """Whether it could come back without being in the same need at once; `available` is the host's free memory."""
    # CRIU itself, and what it has in hand, are in the cgroup while it restores.
    needed = waiting.usage + max(_ROOM_MIN, int(waiting.usage * _ROOM_SHARE))
    if available < needed:
        return False
    if reading.limit == 0:
        return True
    after = reading.usage + waiting.usage
    return reading.usage + needed <= reading.limit and after < waiting.goal * reading.limit


def _rank(policy: Policy, victim: Victim) -> int | None:
    return next((index for index, each in enumerate(policy.victims) if fnmatchcase(victim.label, each)), None)


def _has_fired(trigger: Trigger, reading: MemoryReading, events: Collection[Event]) -> bool:
    match trigger:
        case AtShare(share=share):
            return reading.share >= share or reading.under_oom
        case AtOom():
            return reading.under_oom or Event.OOM in events
        case AtPsi():
            return Event.PSI in events or reading.under_oom
