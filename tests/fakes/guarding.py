"""A world of cgroups without a machine for the guard's flow: memory, victims, and a journal of what was done.

The fakes keep what the flow promises about: who lives, what of it is durable, and who waits to come back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from ckpt.errors import CkptError, DumpFailed, Interrupted, ObjectMissing, OsRefused, WrongState
from ckpt.flow.guard import Teller
from ckpt.flow.guard_ports import GuardPorts
from ckpt.model.guard_steps import (
    MemoryReading,
    MigrateAway,
    Notify,
)
from ckpt.model.guarding import (
    Event,
    Policy,
    Relief,
    Victim,
    Waiting,
    Watched,
)
from ckpt.model.target import TargetRef
from ckpt.model.workload import TargetKind
from ckpt.units import SECOND, ByteCount, CheckpointId, JobName, Nanoseconds

MIB = 1 << 20
WATCHED = Watched(cgroup="/memory/box")


@dataclass
class GuardWorld:
    """One watched cgroup with jobs in it; `script` is what happens while the guard waits, one call for each wait."""

    jobs: dict[str, int] = field(default_factory=dict)
    limit: int = 100 * MIB
    droppable: int = 0
    under_oom: bool = False
    available: int = 1 << 40
    script: list[Callable[[], frozenset[Event]]] = field(default_factory=list)
    journal: list[str] = field(default_factory=list)
    failing: set[str] = field(default_factory=set)
    durable: dict[str, int] = field(default_factory=dict)
    waiting: dict[str, Waiting] = field(default_factory=dict)
    fed: set[str] = field(default_factory=set)
    frees_on_signal: int = 0
    time: int = 0
    guarded: bool = False

    def step(self, name: str) -> None:
        self.journal.append(name)
        if name in self.failing:
            raise DumpFailed(cause=f"{name} was told to fail")

    def ports(self) -> GuardPorts:
        return GuardPorts(
            clock=FakeGuardClock(self),
            memory=FakeMemory(self),
            pressures=FakePressures(self),
            victims=FakeVictims(self),
            acts=FakeActs(self),
            checkpoints=FakeCheckpoints(self),
            waiting=FakeWaitingRoom(self),
        )


@dataclass
class FakeGuardClock:
    world: GuardWorld

    def realtime(self) -> Nanoseconds:
        return Nanoseconds(self.world.time)

    def stopwatch(self) -> Nanoseconds:
        return Nanoseconds(self.world.time)


@dataclass
class FakeMemory:
    world: GuardWorld

    def read(self, cgroup: str) -> MemoryReading | None:
        if cgroup != WATCHED.cgroup:
            size = self.world.jobs.get(cgroup.rpartition("/")[2])
            return None if size is None else _reading(size, 0, 0)
        used = sum(self.world.jobs.values()) + self.world.droppable
        return MemoryReading(
            charged=ByteCount(used),
            droppable=ByteCount(self.world.droppable),
            limit=ByteCount(self.world.limit),
            under_oom=self.world.under_oom and used >= self.world.limit,
        )

    def available(self) -> ByteCount:
        return ByteCount(self.world.available)

    def reclaim(self, cgroup: str, share: float) -> None:
        self.world.step("reclaim")
        self.world.droppable = 0

    def raise_limit(self, cgroup: str, by: ByteCount, up_to: ByteCount) -> ByteCount:
        self.world.step("raise")
        wanted = min(self.world.limit + by, up_to)
        if wanted <= self.world.limit:
            raise WrongState(
                subject=cgroup, state=str(self.world.limit), operation="raising it", needed="lower"
            )
        self.world.limit = wanted
        return ByteCount(wanted)

    def await_below(self, cgroup: str, share: float, patience: Nanoseconds) -> MemoryReading | None:
        self.world.time += patience
        return self.read(cgroup)

    def keep(self, cgroup: str, limit: ByteCount) -> None:
        if "keep" in self.world.failing:
            raise OsRefused(operation="make the cgroup", subject=cgroup, reason="it was told to fail")


@dataclass
class FakePressures:
    world: GuardWorld

    @contextmanager
    def open(self, watched: tuple[Watched, ...], policy: Policy) -> Iterator[FakePressures]:
        self.world.guarded = True
        try:
            yield self
        finally:
            self.world.guarded = False

    def wait(self, timeout: Nanoseconds) -> dict[str, frozenset[Event]]:
        self.world.time += timeout
        if not self.world.script:
            raise Interrupted(operation="the guard")
        return {WATCHED.cgroup: self.world.script.pop(0)()}


@dataclass
class FakeVictims:
    world: GuardWorld

    def of(self, watched: Watched) -> tuple[Victim, ...]:
        return tuple(a_victim(name, size, watched) for name, size in self.world.jobs.items())

    def lives(self, watched: Watched) -> bool:
        return bool(self.world.jobs)


@dataclass
class FakeActs:
    world: GuardWorld

    def notify(self, step: Notify, watched: Watched, victim: Victim, event: Event) -> None:
        self.world.step(f"notify {event}")

    def signal(self, victim: Victim, number: int) -> None:
        self.world.step(f"signal {number} {victim.label}")
        self.world.jobs[victim.label] -= self.world.frees_on_signal

    def migrate(self, victim: Victim, step: MigrateAway) -> None:
        self.world.step(f"migrate {victim.label} to {step.host}")
        del self.world.jobs[victim.label]

    def kill(self, victim: Victim) -> None:
        self.world.step(f"kill {victim.label}")
        del self.world.jobs[victim.label]


@dataclass
class FakeCheckpoints:
    world: GuardWorld
    place: str = "/store"

    def take(self, victim: Victim) -> CheckpointId:
        assert (
            victim.label in self.world.waiting
            or victim.label in self.world.fed
            or "no-resume" in self.world.journal
        )
        self.world.step(f"checkpoint {victim.label}")
        self.world.durable[victim.label] = self.world.jobs.pop(victim.label)
        self.world.step(f"ended {victim.label}")
        return CheckpointId(f"id-{victim.label}")

    def has_caller(self, victim: Victim) -> bool:
        return victim.label in self.world.fed

    def bring_back(self, waiting: Waiting) -> None:
        self.world.step(f"bring back {waiting.ref.name}")
        self.world.jobs[waiting.ref.name] = self.world.durable[waiting.ref.name]

    def found(self, waiting: Waiting) -> CheckpointId | None:
        name = waiting.ref.name
        if "find" in self.world.failing:
            raise ObjectMissing(place=self.place, kind="checkpoint", name=name)
        if name in self.world.jobs or name not in self.world.durable:
            return None
        return CheckpointId(f"id-{name}")


@dataclass
class FakeWaitingRoom:
    world: GuardWorld

    def put(self, waiting: Waiting) -> None:
        self.world.waiting[waiting.ref.name] = waiting

    def of(self, watched: Watched) -> tuple[Waiting, ...]:
        return tuple(each for each in self.world.waiting.values() if each.watched == watched.cgroup)

    def remove(self, ref: TargetRef) -> None:
        self.world.waiting.pop(ref.name, None)


@dataclass
class FakeTeller(Teller):
    """Writes down what it is told, in words."""

    told: list[str] = field(default_factory=list)

    def relief(self, watched: Watched, relief: Relief) -> None:
        self.told += [f"{each.step} {each.result}" for each in relief.outcomes]

    def helpless(self, watched: Watched, reading: MemoryReading) -> None:
        self.told.append("helpless")

    def resumed(self, waiting: Waiting) -> None:
        self.told.append(f"resumed {waiting.ref.name}")

    def not_resumed(self, waiting: Waiting, error: CkptError) -> None:
        self.told.append(f"not resumed {waiting.ref.name}")

    def ended(self, watched: Watched) -> None:
        self.told.append("ended")


def a_victim(name: str, size: int = MIB, watched: Watched = WATCHED) -> Victim:
    """A job of this name below what is watched."""
    return Victim(
        ref=TargetRef(kind=TargetKind.JOB, name=name),
        job=JobName(name),
        cgroup=f"{watched.cgroup}/{name}",
        usage=ByteCount(size),
    )


def _reading(charged: int, droppable: int, limit: int) -> MemoryReading:
    return MemoryReading(charged=ByteCount(charged), droppable=ByteCount(droppable), limit=ByteCount(limit))


HOUR = Nanoseconds(3600 * SECOND)
