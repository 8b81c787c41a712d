"""What the guard needs of the world, as Protocols; adapters in host/guard/ and cli/wiring_guard.py fit them.

Rule: nothing here is specific to a cgroup version.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from ckpt.model.guard_steps import (
    MemoryReading,
    MigrateAway,
    Notify,
)
from ckpt.model.guarding import (
    Event,
    Policy,
    Victim,
    Waiting,
    Watched,
)
from ckpt.model.target import TargetRef
from ckpt.units import ByteCount, CheckpointId, Nanoseconds


class GuardClock(Protocol):
    """The host's clocks."""

    def realtime(self) -> Nanoseconds:
        """CLOCK_REALTIME now."""

    def stopwatch(self) -> Nanoseconds:
        """A clock that only ever goes forward, for durations."""


class Memory(Protocol):
    """The memory of cgroups."""

    def read(self, cgroup: str) -> MemoryReading | None:
        """The cgroup's memory now; None if it is gone."""

    def available(self) -> ByteCount:
        """What this host has to give."""

    def reclaim(self, cgroup: str, share: float) -> None:
        """Let the kernel drop and swap out what it can, until the usage is below this share of the limit.

        Raises:
            FeatureMissing: this kernel does not do it on demand.
        """

    def raise_limit(self, cgroup: str, by: ByteCount, up_to: ByteCount) -> ByteCount:
        """Raise the limit by that much, never above `up_to`; gives what it is now.

        Raises:
            WrongState: it is as high already.
            OsRefused: the kernel refused.
        """

    def await_below(self, cgroup: str, share: float, patience: Nanoseconds) -> MemoryReading | None:
        """Wait until the usage is below this share of the limit, at most so long; gives the last reading."""

    def keep(self, cgroup: str, limit: ByteCount) -> None:
        """Have the cgroup there for a job that comes back, with this limit where it had to be made."""


class Pressure(Protocol):
    """Descriptors on which the kernel tells of pressure, and of limits that somebody changes."""

    def wait(self, timeout: Nanoseconds) -> dict[str, frozenset[Event]]:
        """What came, by watched cgroup; after `timeout` at the latest, and also when a limit was changed."""


class Pressures(Protocol):
    """Opens what tells of pressure."""

    def open(self, watched: tuple[Watched, ...], policy: Policy) -> AbstractContextManager[Pressure]:
        """Watch these cgroups, with what that needs of them set, and set back however it is left.

        Raises:
            Locked: another guard watches one of them.
            FeatureMissing: this kernel does not tell.
        """


class Victims(Protocol):
    """Who is in a cgroup."""

    def of(self, watched: Watched) -> tuple[Victim, ...]:
        """The jobs that live in it or below, or what else does."""

    def lives(self, watched: Watched) -> bool:
        """Whether there is still something to watch."""


class Acts(Protocol):
    """What can be done to a victim, but for a checkpoint."""

    def notify(self, step: Notify, watched: Watched, victim: Victim, event: Event) -> None:
        """Run the command.

        Raises:
            CommandFailed: it failed, could not be started, or took too long and was killed.
        """

    def signal(self, victim: Victim, number: int) -> None:
        """Send the victim's main process the signal.

        Raises:
            NoSuchTarget: it has ended.
        """

    def migrate(self, victim: Victim, step: MigrateAway) -> None:
        """Move the victim to the host.

        Raises:
            CkptError: it runs on here.
        """

    def kill(self, victim: Victim) -> None:
        """Kill all of it.

        Raises:
            OsRefused: a task cannot be killed.
        """


class Checkpoints(Protocol):
    """Checkpoints of victims that are short of memory."""

    @property
    def place(self) -> str:
        """The store's."""

    def take(self, victim: Victim) -> CheckpointId:
        """Checkpoint the victim and end it, once that is durable.

        Raises:
            CkptError: it runs on.
        """

    def has_caller(self, victim: Victim) -> bool:
        """Whether only who started the victim can bring it back, as its input comes from there."""

    def bring_back(self, waiting: Waiting) -> None:
        """Restore a victim.

        Raises:
            CkptError: it is where it was.
        """

    def found(self, waiting: Waiting) -> CheckpointId | None:
        """What this one can be brought back from; None if it runs, was brought back, or never was ended."""


class WaitingRoom(Protocol):
    """Who waits to be brought back; durable."""

    def put(self, waiting: Waiting) -> None:
        """Write it down, in place of what was known of the same target."""

    def of(self, watched: Watched) -> tuple[Waiting, ...]:
        """Who waits for room in this cgroup, the longest first."""

    def remove(self, ref: TargetRef) -> None:
        """It waits no more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardPorts:
    """The outside things that a guard needs."""

    clock: GuardClock
    memory: Memory
    pressures: Pressures
    victims: Victims
    acts: Acts
    checkpoints: Checkpoints
    waiting: WaitingRoom
