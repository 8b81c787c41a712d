"""A policy says what is due, who goes first, and who may come back."""

from __future__ import annotations

import pytest
from fakes.guarding import MIB, a_victim

from ckpt.errors import Usage
from ckpt.model.guard_steps import (
    AtOom,
    AtPsi,
    AtShare,
    KillVictim,
    MemoryReading,
    Reclaim,
    StepName,
    TakeCheckpoint,
)
from ckpt.model.guarding import (
    Event,
    Policy,
    Waiting,
    has_room,
    order_victims,
)
from ckpt.units import MILLISECOND, SECOND, ByteCount, Nanoseconds

ESCALATION = Policy(
    at=AtShare(share=0.8),
    margin=0.1,
    steps=(Reclaim(), TakeCheckpoint(at=AtShare(share=0.9)), KillVictim(at=AtOom())),
)


def reading(used: int, *, limit: int = 100, droppable: int = 0, under_oom: bool = False) -> MemoryReading:
    return MemoryReading(
        charged=ByteCount(used * MIB),
        droppable=ByteCount(droppable * MIB),
        limit=ByteCount(limit * MIB),
        under_oom=under_oom,
    )


@pytest.mark.parametrize(
    ("used", "taken", "events", "due"),
    [
        (79, 0, (), []),
        (80, 0, (), ["reclaim"]),
        (85, 1, (), []),
        (90, 0, (), ["reclaim", "checkpoint"]),
        (90, 1, (), ["checkpoint"]),
        (99, 2, (), []),
        (99, 2, (Event.OOM,), ["kill"]),
        (99, 0, (Event.OOM,), ["reclaim", "checkpoint", "kill"]),
        # What holds a step back holds back those after it.
        (50, 0, (Event.OOM,), []),
        (99, 3, (Event.OOM,), []),
    ],
)
def test_steps_are_due_in_their_order_as_far_as_their_triggers_have_fired(
    used: int, taken: int, events: tuple[Event, ...], due: list[str]
) -> None:
    assert [step.name for step in ESCALATION.due(taken, reading(used), events)] == due


def test_a_task_that_waits_for_memory_fires_every_trigger() -> None:
    psi = AtPsi(full=False, stall_ns=Nanoseconds(200 * MILLISECOND), window_ns=Nanoseconds(2 * SECOND))
    policy = Policy(steps=(Reclaim(at=psi), KillVictim(at=AtOom())))
    assert policy.due(0, reading(100), ()) == ()
    assert len(policy.due(0, reading(100, under_oom=True), ())) == 2


def test_what_can_be_dropped_is_no_pressure_and_no_limit_is_none_either() -> None:
    assert ESCALATION.due(0, reading(100, droppable=40), ()) == ()
    assert ESCALATION.due(0, reading(100, limit=0), ()) == ()


def test_the_pressure_is_gone_below_the_lowest_share_less_the_margin() -> None:
    assert ESCALATION.goal == pytest.approx(0.7)
    assert reading(69).is_below(ESCALATION.goal)
    assert not reading(71).is_below(ESCALATION.goal)
    assert not reading(69, under_oom=True).is_below(ESCALATION.goal)


def test_victims_go_by_the_operators_order_and_then_by_size_and_who_is_not_named_is_spared() -> None:
    victims = [a_victim("web", 9), a_victim("batch-1", 1), a_victim("batch-2", 5), a_victim("db", 20)]
    assert [each.label for each in order_victims(Policy(), victims)] == ["db", "web", "batch-2", "batch-1"]
    named = Policy(victims=("batch-*", "web"))
    assert [each.label for each in order_victims(named, victims)] == ["batch-2", "batch-1", "web"]


@pytest.mark.parametrize(
    ("used", "limit", "available", "room"),
    [
        (0, 100, 1000, False),  # where it was ended it would be in need again
        (0, 105, 1000, False),  # CRIU would have none
        (0, 106, 1000, True),
        (20, 106, 1000, False),
        (0, 106, 90, False),  # the host has not that much
        (0, 0, 1000, True),
    ],
)
def test_who_was_ended_comes_back_when_there_is_room_for_it_here_and_on_the_host(
    used: int, limit: int, available: int, *, room: bool
) -> None:
    victim = a_victim("web", 90 * MIB)
    waiting = Waiting(
        ref=victim.ref,
        checkpoint=None,
        store="/store",
        watched="/memory/box",
        cgroup=victim.cgroup,
        limit=ByteCount(100 * MIB),
        usage=victim.usage,
        goal=0.85,
        since_ns=Nanoseconds(0),
    )
    assert has_room(waiting, reading(used, limit=limit), ByteCount(available * MIB)) is room


@pytest.mark.parametrize(
    "make",
    [
        lambda: AtShare(share=0),
        lambda: AtShare(share=1.01),
        lambda: AtPsi(full=True, stall_ns=Nanoseconds(SECOND), window_ns=Nanoseconds(100 * MILLISECOND)),
        lambda: AtPsi(full=True, stall_ns=Nanoseconds(3 * SECOND), window_ns=Nanoseconds(2 * SECOND)),
        lambda: Policy(steps=()),
        lambda: Policy(margin=0.9),
    ],
)
def test_what_can_never_be_meant_is_refused(make: object) -> None:
    assert callable(make)
    with pytest.raises(Usage):
        make()


def test_without_a_policy_it_reclaims_and_checkpoints_at_nine_tenths() -> None:
    assert [step.name for step in Policy().steps] == [StepName.RECLAIM, StepName.CHECKPOINT]
    assert Policy().triggers == (AtShare(share=0.9),)
