"""Relieve the pressure in one cgroup with one victim: take steps, one after the other, until it is gone.

Rules:
  G1  After each step it is looked whether the pressure is gone, before the next is taken.
  G2  A step that fails is told, and the next one comes: a guard never ends because of a victim.
  G3  Who is to come back is written down before it is checkpointed: a guard that dies loses nobody. A job that its
      caller feeds comes back with its caller alone: here it would find the end of its input.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from typing import Final

from ckpt.errors import CkptError, Interrupted, NoSpace, OsRefused
from ckpt.flow.guard_ports import GuardPorts
from ckpt.model.guard_steps import (
    KillVictim,
    MemoryReading,
    MigrateAway,
    Notify,
    RaiseLimit,
    Reclaim,
    SendSignal,
    Step,
    StepName,
    TakeCheckpoint,
)
from ckpt.model.guarding import (
    Event,
    Relief,
    Result,
    StepOutcome,
    Victim,
    Waiting,
    Watched,
)
from ckpt.units import ByteCount, CheckpointId, human_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ReliefCall:
    """One victim, and the steps that are to be taken now, whatever their triggers.

    `goal` is the share of the watched cgroup's limit below which the pressure is gone; None: when the victim has ended.
    `room` is the share that must not be passed by coming back.
    """

    watched: Watched
    victim: Victim
    steps: tuple[Step, ...]
    event: Event
    goal: float | None
    room: float = 1.0


def relieve(call: ReliefCall, ports: GuardPorts) -> Relief:
    """Take the steps, one after the other, until the pressure is gone or the victim has ended.

    Never fails but by interruption: what a step could not do is in its outcome, and the next one was taken.
    """
    outcomes: list[StepOutcome] = []
    ended = False
    for step in call.steps:
        outcome = _take(call, step, ports)
        outcomes.append(outcome)
        ended = outcome.result is Result.DONE and step.name in _ENDING
        if ended or _is_relieved(outcome.after, call.goal):
            break
    after = outcomes[-1].after if outcomes else ports.memory.read(call.watched.cgroup)
    return Relief(
        victim=call.victim,
        outcomes=tuple(outcomes),
        ended=ended,
        relieved=_is_relieved(after, call.goal) if call.goal is not None else ended,
    )


_ENDING: Final = frozenset((StepName.CHECKPOINT, StepName.MIGRATE, StepName.KILL))
"""After these the victim does not run here any more."""


def _take(call: ReliefCall, step: Step, ports: GuardPorts) -> StepOutcome:
    detail, checkpoint = "", None
    try:
        match step:
            case Notify():
                ports.acts.notify(step, call.watched, call.victim, call.event)
            case Reclaim():
                ports.memory.reclaim(call.watched.cgroup, call.goal or 0.0)
            case RaiseLimit(by=by, up_to=up_to):
                detail = f"to {human_bytes(ports.memory.raise_limit(call.watched.cgroup, by, up_to))}"
            case SendSignal(number=number, patience_ns=patience):
                ports.acts.signal(call.victim, number)
                ports.memory.await_below(call.watched.cgroup, call.goal or 0.0, patience)
            case TakeCheckpoint():
                checkpoint = _checkpoint(call, step, ports)
            case MigrateAway(host=host):
                ports.acts.migrate(call.victim, step)
                detail = f"to {host}"
            case KillVictim():
                ports.acts.kill(call.victim)
    except Interrupted:
        raise
    except CkptError as error:
        return StepOutcome(
            step=step.name,
            result=Result.FAILED,
            after=ports.memory.read(call.watched.cgroup),
            detail=error.message,
            slug=error.slug,
        )
    return StepOutcome(
        step=step.name,
        result=Result.DONE,
        after=ports.memory.read(call.watched.cgroup),
        detail=detail,
        checkpoint=checkpoint,
    )


def _checkpoint(call: ReliefCall, step: TakeCheckpoint, ports: GuardPorts) -> CheckpointId:
    victim = call.victim
    if not step.resume or ports.checkpoints.has_caller(victim):
        return ports.checkpoints.take(victim)
    own = ports.memory.read(victim.cgroup)
    waiting = Waiting(
        ref=victim.ref,
        checkpoint=None,
        store=ports.checkpoints.place,
        watched=call.watched.cgroup,
        cgroup=victim.cgroup,
        limit=own.limit if own is not None else ByteCount(0),
        usage=victim.usage,
        goal=call.room,
        since_ns=ports.clock.realtime(),
    )
    ports.waiting.put(waiting)
    try:
        taken = ports.checkpoints.take(victim)
    except CkptError:
        if ports.checkpoints.found(waiting) is None:
            ports.waiting.remove(waiting.ref)
        raise
    # It has ended: what fails from here on is no failure of the checkpoint, and is made up for when it comes back.
    with contextlib.suppress(NoSpace, OsRefused):
        ports.waiting.put(replace(waiting, checkpoint=taken))
        ports.memory.keep(waiting.cgroup, waiting.limit)
    return taken


def _is_relieved(reading: MemoryReading | None, goal: float | None) -> bool:
    if goal is None:
        return False
    return reading is None or reading.is_below(goal)
