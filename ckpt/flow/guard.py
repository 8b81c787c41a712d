"""Guard cgroups against the OOM killer: wait for pressure, take one step after the other, bring back who was ended.

Rules:
  G1 to G3 are those of relief.py, by which each step is taken.
  G4  Who was ended comes back only when there is room for all that it used.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Final

from ckpt.errors import CkptError, Interrupted
from ckpt.flow.guard_ports import GuardPorts
from ckpt.flow.relief import ReliefCall, relieve
from ckpt.model.guard_steps import (
    MemoryReading,
)
from ckpt.model.guarding import (
    Event,
    Policy,
    Relief,
    Victim,
    Waiting,
    Watched,
    has_room,
    order_victims,
)
from ckpt.model.target import TargetRef
from ckpt.units import MILLISECOND, SECOND, Nanoseconds

LOOK_AGAIN: Final = Nanoseconds(5 * SECOND)
"""How often it is looked although nothing was told: limits of cgroups above may change, jobs may end."""

LOOK_FOR_ROOM: Final = Nanoseconds(SECOND)
"""The same while somebody waits to be brought back: the kernel does not tell that others have gone."""

LOOK_SOON: Final = Nanoseconds(200 * MILLISECOND)
"""The same while the memory is above a share at which something is done: the kernel tells of its passing only once."""

TRY_AGAIN_MIN: Final = Nanoseconds(5 * SECOND)
TRY_AGAIN_MAX: Final = Nanoseconds(300 * SECOND)
"""How long it takes to the next try with victims that no step could relieve, or that could not be brought back."""

CALM: Final = Nanoseconds(60 * SECOND)
"""How long nobody must have stood still for memory (PSI) before somebody comes back: the usage says nothing then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardCall:
    """What is watched, and what is done. `once` acts on what is found at the beginning, and returns."""

    watched: tuple[Watched, ...]
    policy: Policy
    once: bool = False


class Teller:
    """Hears what a guard does; does nothing with it unless a subclass does."""

    def watches(self, watched: Watched, reading: MemoryReading | None) -> None:
        """This cgroup is watched from now on."""

    def pressure(self, watched: Watched, event: Event, reading: MemoryReading) -> None:
        """There is pressure that something can be done about."""

    def relief(self, watched: Watched, relief: Relief) -> None:
        """Steps were taken."""

    def helpless(self, watched: Watched, reading: MemoryReading) -> None:
        """Every step was taken with every victim, and the pressure is still there."""

    def resumed(self, waiting: Waiting) -> None:
        """This one was brought back."""

    def not_resumed(self, waiting: Waiting, error: CkptError) -> None:
        """This one could not be brought back, and waits on."""

    def ended(self, watched: Watched) -> None:
        """There is nothing left to watch there."""


@dataclass(slots=True, kw_only=True)
class _Watch:
    """How far the guard is with one cgroup."""

    watched: Watched
    taken: int = 0
    exhausted: set[TargetRef] = field(default_factory=set)
    in_need: bool = False
    again_at: Nanoseconds = Nanoseconds(0)
    patience: Nanoseconds = TRY_AGAIN_MIN
    deaf_until: Nanoseconds = Nanoseconds(0)
    calm_at: Nanoseconds = Nanoseconds(0)

    def heard(self, events: frozenset[Event], now: Nanoseconds) -> frozenset[Event]:
        """The events without those that came too soon after all was tried."""
        if Event.PSI not in events:
            return events
        self.calm_at = Nanoseconds(now + CALM)
        return events - {Event.PSI} if now < self.deaf_until else events

    def forget(self) -> None:
        """The pressure is gone."""
        self.taken = 0
        self.exhausted.clear()
        self.in_need = False
        self.again_at = Nanoseconds(0)
        self.patience = TRY_AGAIN_MIN


def guard(call: GuardCall, ports: GuardPorts, teller: Teller) -> bool:
    """Watch until nothing is left that could be watched or brought back; gives whether all pressure was relieved.

    Raises:
        Locked: another guard watches one of the cgroups.
        FeatureMissing: this kernel does not tell of pressure.
        Interrupted: the cgroups are as they were found, and who waits to come back is written down.
    """
    one = _Guard(call, ports, teller)
    with ports.pressures.open(call.watched, call.policy) as pressure:
        for each in call.watched:
            teller.watches(each, ports.memory.read(each.cgroup))
        events: dict[str, frozenset[Event]] = {}
        while True:
            one.turn(events)
            if call.once or not one.watches:
                return not any(watch.in_need for watch in one.watches)
            events = pressure.wait(one.timeout())


class _Guard:
    """A guard at work."""

    def __init__(self, call: GuardCall, ports: GuardPorts, teller: Teller) -> None:
        self._policy = call.policy
        self._ports = ports
        self._teller = teller
        self._tries: dict[TargetRef, tuple[Nanoseconds, Nanoseconds]] = {}
        self._soon = False
        self._waits = False
        self.watches = [_Watch(watched=each) for each in call.watched]

    def turn(self, events: dict[str, frozenset[Event]]) -> None:
        """Look at everything once, and do what is due."""
        self._soon = self._waits = False
        for watch in list(self.watches):
            self._relieve(watch, events.get(watch.watched.cgroup, frozenset()))
            waits = self._resume(watch)
            self._waits = self._waits or waits
            if not waits and not self._ports.victims.lives(watch.watched):
                self._teller.ended(watch.watched)
                self.watches.remove(watch)

    def timeout(self) -> Nanoseconds:
        """How long nothing needs to be looked at, unless something is told."""
        if self._soon:
            return LOOK_SOON
        return LOOK_FOR_ROOM if self._waits else LOOK_AGAIN

    def _relieve(self, watch: _Watch, events: frozenset[Event]) -> None:
        """Take what steps are due, with one victim after the other, until the pressure is gone."""
        events = watch.heard(events, self._ports.clock.stopwatch())
        goal: float | None = None
        while (reading := self._ports.memory.read(watch.watched.cgroup)) is not None:
            due = self._policy.due(watch.taken, reading, events)
            if not due and reading.is_below(self._policy.goal):
                watch.forget()
            self._soon = (
                self._soon or not reading.is_below(self._policy.goal) or _is_near(reading, self._policy)
            )
            if not due or self._ports.clock.stopwatch() < watch.again_at:
                return
            goal = self._policy.goal_from(reading) if goal is None else goal
            victims = self._victims_left(watch)
            if not victims and reading.is_below(goal):
                watch.forget()
                return
            if not victims:
                self._give_up(watch, reading)
                return
            event = _why(events, reading)
            if not watch.in_need:
                watch.in_need = True
                self._teller.pressure(watch.watched, event, reading)
            call = ReliefCall(
                watched=watch.watched,
                victim=victims[0],
                steps=due,
                event=event,
                goal=goal,
                room=self._policy.goal,
            )
            relief = relieve(call, self._ports)
            self._teller.relief(watch.watched, relief)
            if relief.relieved:
                watch.forget()
                return
            watch.taken += len(relief.outcomes)
            if relief.ended or watch.taken >= len(self._policy.steps):
                watch.taken = 0
                watch.exhausted.add(victims[0].ref)

    def _victims_left(self, watch: _Watch) -> tuple[Victim, ...]:
        victims = order_victims(self._policy, self._ports.victims.of(watch.watched))
        return tuple(each for each in victims if each.ref not in watch.exhausted)

    def _give_up(self, watch: _Watch, reading: MemoryReading) -> None:
        """Nothing is left to try: after a while all begins anew."""
        if watch.exhausted or not watch.in_need:
            watch.in_need = True
            self._teller.helpless(watch.watched, reading)
        watch.exhausted.clear()
        watch.taken = 0
        watch.again_at = Nanoseconds(self._ports.clock.stopwatch() + watch.patience)
        watch.deaf_until = watch.again_at
        watch.patience = Nanoseconds(min(2 * watch.patience, TRY_AGAIN_MAX))

    def _resume(self, watch: _Watch) -> bool:
        """Bring back who has room; gives whether anybody still waits."""
        waits = False
        for known in self._ports.waiting.of(watch.watched):
            waits = not self._is_settled(watch, known) or waits
        return waits

    def _is_settled(self, watch: _Watch, known: Waiting) -> bool:
        """Bring one back if it has room; gives whether it waits no more."""
        now = self._ports.clock.stopwatch()
        again_at, patience = self._tries.get(known.ref, (now, TRY_AGAIN_MIN))
        if now < again_at:
            return False
        waiting = known
        try:
            checkpoint = self._ports.checkpoints.found(known)
            if checkpoint is not None:
                waiting = replace(known, checkpoint=checkpoint)
                self._ports.memory.keep(waiting.cgroup, waiting.limit)
                if not self._may_come_back(watch, waiting, now):
                    return False
                self._ports.checkpoints.bring_back(waiting)
        except Interrupted:
            raise
        except CkptError as error:  # the store, too, may be away for a while
            self._teller.not_resumed(waiting, error)
            longer = Nanoseconds(min(2 * patience, TRY_AGAIN_MAX))
            self._tries[known.ref] = (Nanoseconds(self._ports.clock.stopwatch() + patience), longer)
            return False
        self._tries.pop(known.ref, None)
        self._ports.waiting.remove(known.ref)
        if checkpoint is not None:
            self._teller.resumed(waiting)
        return True

    def _may_come_back(self, watch: _Watch, waiting: Waiting, now: Nanoseconds) -> bool:
        reading = self._ports.memory.read(waiting.watched)
        return (
            not watch.in_need
            and now >= watch.calm_at
            and reading is not None
            and has_room(waiting, reading, self._ports.memory.available())
        )


def _is_near(reading: MemoryReading, policy: Policy) -> bool:
    """Whether a share was passed by what can be dropped: then the kernel has told of it, and does not again."""
    return any(reading.charged >= share * reading.limit for share in policy.shares)


def _why(events: frozenset[Event], reading: MemoryReading) -> Event:
    if reading.under_oom or Event.OOM in events:
        return Event.OOM
    return next(iter(sorted(events)), Event.FOUND)
