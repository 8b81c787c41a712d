"""What a guard can do about memory pressure, step by step, and what must have happened before: the words of a policy.

A *step* is one thing that a guard does, a *trigger* what it waits for, a *reading* what there is to judge by.
Rule: what can be dropped at once (`inactive_file`) is no pressure: a job that reads files is always at its limit.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar, Final

from ckpt.errors import Usage
from ckpt.units import MILLISECOND, SECOND, ByteCount, Nanoseconds

NOTIFY_TIMEOUT: Final = Nanoseconds(10 * SECOND)
SIGNAL_PATIENCE: Final = Nanoseconds(2 * SECOND)


@dataclass(frozen=True, slots=True, kw_only=True)
class AtShare:
    """Fires at this share of the limit.

    Raises:
        Usage: no share of anything.
    """

    share: float

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise Usage(problem=f"{self.share:.0%} is not a share of a limit: it goes from 1% to 100%.")

    def __str__(self) -> str:
        return f"{self.share * 100:g}%"


@dataclass(frozen=True, slots=True, kw_only=True)
class AtOom:
    """Fires when the limit is reached and nothing can be reclaimed."""

    def __str__(self) -> str:
        return "oom"


@dataclass(frozen=True, slots=True, kw_only=True)
class AtPsi:
    """Fires when `some` task, or with `full` all, stood still for want of memory for `stall_ns` of `window_ns`.

    Raises:
        Usage: the kernel takes no such window (PSI: 500 ms to 10 s), or the stall does not fit in.
    """

    full: bool
    stall_ns: Nanoseconds
    window_ns: Nanoseconds

    def __post_init__(self) -> None:
        if not 500 * MILLISECOND <= self.window_ns <= 10 * SECOND:
            raise Usage(problem=f"A PSI window of {self.window_ns / 1e9:g} s cannot be: 500 ms to 10 s can.")
        if not 0 < self.stall_ns <= self.window_ns:
            raise Usage(problem="A PSI stall must be more than zero and fit into its window.")

    def __str__(self) -> str:
        kind = "full" if self.full else "some"
        return f"psi {kind} {self.stall_ns // MILLISECOND}ms/{self.window_ns // MILLISECOND}ms"


Trigger = AtShare | AtOom | AtPsi


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryReading:
    """The memory of a cgroup now: all that is charged, how much of that can be dropped at once, and the limit.

    A limit of 0 is none. `under_oom`: tasks wait in the kernel for memory, and nobody is killed.
    """

    charged: ByteCount
    droppable: ByteCount
    limit: ByteCount
    under_oom: bool = False

    @property
    def usage(self) -> ByteCount:
        """What cannot be dropped at once."""
        return ByteCount(max(0, self.charged - self.droppable))

    @property
    def share(self) -> float:
        """The usage as a share of the limit."""
        return self.usage / self.limit if self.limit else 0.0

    def is_below(self, share: float) -> bool:
        """Whether the usage is below that share of the limit, and nobody waits for memory."""
        return self.share < share and not self.under_oom


class StepName(StrEnum):
    """The steps, as a policy names them."""

    NOTIFY = "notify"
    RECLAIM = "reclaim"
    RAISE = "raise"
    SIGNAL = "signal"
    CHECKPOINT = "checkpoint"
    MIGRATE = "migrate"
    KILL = "kill"


@dataclass(frozen=True, slots=True, kw_only=True)
class Notify:
    """Run a command, and wait for its end at most so long."""

    name: ClassVar[StepName] = StepName.NOTIFY
    command: tuple[str, ...]
    timeout_ns: Nanoseconds = NOTIFY_TIMEOUT
    at: Trigger | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reclaim:
    """Let the kernel drop and swap out what it can."""

    name: ClassVar[StepName] = StepName.RECLAIM
    at: Trigger | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RaiseLimit:
    """Raise the limit by `by`, never above `up_to`."""

    name: ClassVar[StepName] = StepName.RAISE
    by: ByteCount
    up_to: ByteCount
    at: Trigger | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SendSignal:
    """Send the victim's main process a signal, and give it so long to free memory."""

    name: ClassVar[StepName] = StepName.SIGNAL
    number: int
    patience_ns: Nanoseconds = SIGNAL_PATIENCE
    at: Trigger | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TakeCheckpoint:
    """Checkpoint the victim and end it; with `resume` bring it back when there is room."""

    name: ClassVar[StepName] = StepName.CHECKPOINT
    resume: bool = True
    at: Trigger | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MigrateAway:
    """Move the victim to another host, as `ckpt migrate VICTIM HOST` does with these further words."""

    name: ClassVar[StepName] = StepName.MIGRATE
    host: str
    options: tuple[str, ...] = ()
    at: Trigger | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class KillVictim:
    """Kill the victim: nothing of it is kept but its earlier checkpoints."""

    name: ClassVar[StepName] = StepName.KILL
    at: Trigger | None = None


Step = Notify | Reclaim | RaiseLimit | SendSignal | TakeCheckpoint | MigrateAway | KillVictim
