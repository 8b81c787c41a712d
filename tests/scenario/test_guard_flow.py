"""A guard at work, without a machine: one step after the other, nobody lost, and everybody back when there is room."""

from __future__ import annotations

import pytest
from fakes.guarding import MIB, WATCHED, FakeTeller, GuardWorld, a_victim

from ckpt.errors import Interrupted
from ckpt.flow.guard import GuardCall, guard
from ckpt.flow.relief import ReliefCall, relieve
from ckpt.model.guard_steps import (
    AtOom,
    AtPsi,
    AtShare,
    KillVictim,
    MigrateAway,
    Notify,
    RaiseLimit,
    Reclaim,
    SendSignal,
    Step,
    TakeCheckpoint,
)
from ckpt.model.guarding import (
    Event,
    Policy,
)
from ckpt.units import SECOND, ByteCount, Nanoseconds

NOTHING: frozenset[Event] = frozenset()
OOM = frozenset((Event.OOM,))


def run(world: GuardWorld, *steps: Step, once: bool = False, victims: tuple[str, ...] = ()) -> FakeTeller:
    """Guard until the world's script is at its end."""
    teller = FakeTeller()
    policy = Policy(steps=steps or Policy().steps, victims=victims)
    try:
        guard(GuardCall(watched=(WATCHED,), policy=policy, once=once), world.ports(), teller)
    except Interrupted:
        assert not world.script
    assert not world.guarded, "the cgroups are as they were found"
    return teller


def growth(world: GuardWorld, job: str, size: int, events: frozenset[Event] = NOTHING):  # type: ignore[no-untyped-def]
    def happens() -> frozenset[Event]:
        world.jobs[job] = size * MIB
        return events

    return happens


def test_a_job_that_grows_is_checkpointed_and_comes_back_when_its_limit_is_raised() -> None:
    world = GuardWorld(jobs={"web": 50 * MIB})

    def raised() -> frozenset[Event]:
        assert world.durable == {"web": 95 * MIB}
        world.limit = 200 * MIB
        return NOTHING

    world.script = [growth(world, "web", 95), lambda: NOTHING, raised, lambda: NOTHING]
    teller = run(world)
    assert world.journal == ["reclaim", "checkpoint web", "ended web", "bring back web"]
    assert teller.told == ["reclaim done", "checkpoint done", "resumed web"]
    assert world.jobs == {"web": 95 * MIB}
    assert not world.waiting


def test_a_job_that_its_caller_feeds_is_left_to_its_caller() -> None:
    world = GuardWorld(jobs={"web": 50 * MIB}, fed={"web"})
    world.script = [growth(world, "web", 95), lambda: NOTHING, lambda: NOTHING]
    run(world)
    assert world.journal == ["reclaim", "checkpoint web", "ended web"]
    assert not world.waiting


def test_nothing_more_is_done_once_a_step_has_helped() -> None:
    world = GuardWorld(jobs={"web": 95 * MIB}, frees_on_signal=50 * MIB)
    run(world, Notify(command=("true",)), SendSignal(number=10), TakeCheckpoint(), KillVictim(), once=True)
    assert world.journal == ["notify found", "signal 10 web"]


def test_every_step_of_an_escalation_is_taken_in_its_order_and_what_fails_does_not_stop_it() -> None:
    world = GuardWorld(jobs={"web": 99 * MIB}, failing={"checkpoint web", "migrate web to there"})
    raising = RaiseLimit(by=ByteCount(MIB), up_to=ByteCount(101 * MIB))
    teller = run(
        world, Reclaim(), raising, TakeCheckpoint(), MigrateAway(host="there"), KillVictim(), once=True
    )
    assert world.journal == ["reclaim", "raise", "checkpoint web", "migrate web to there", "kill web"]
    assert teller.told[2:] == ["checkpoint failed", "migrate failed", "kill done", "ended"]
    assert not world.waiting, "who runs, or was killed on purpose, does not come back"


def test_a_step_waits_for_its_own_trigger_and_is_not_overtaken() -> None:
    world = GuardWorld(jobs={"web": 91 * MIB})
    world.script = [
        lambda: NOTHING,
        growth(world, "web", 96),
        lambda: NOTHING,
        growth(world, "web", 100, OOM),
    ]
    run(
        world,
        Notify(command=("true",)),
        SendSignal(number=10, at=AtShare(share=0.95)),
        KillVictim(at=AtOom()),
    )
    assert world.journal == ["notify found", "signal 10 web", "kill web"]


def test_one_victim_goes_after_the_other_until_it_is_enough() -> None:
    world = GuardWorld(jobs={"web": 20 * MIB, "batch": 10 * MIB, "db": 65 * MIB})
    run(world, once=True, victims=("batch", "*"))
    assert world.journal == ["reclaim", "checkpoint batch", "ended batch"]
    world = GuardWorld(jobs={"web": 20 * MIB, "batch": 5 * MIB, "db": 74 * MIB})
    run(world, once=True, victims=("batch", "*"))
    assert [each for each in world.journal if each.startswith("checkpoint")] == [
        "checkpoint batch",
        "checkpoint db",
    ]
    assert world.journal[-1] == "bring back batch", "there is room for it again"
    assert set(world.waiting) == {"db"}


def test_who_is_spared_stays_and_the_guard_says_that_it_cannot_help_and_tries_again_later() -> None:
    world = GuardWorld(jobs={"db": 99 * MIB})
    world.script = [lambda: NOTHING] * 3
    teller = run(world, victims=("batch",))
    assert world.jobs
    assert world.journal == []
    assert teller.told[0] == "helpless"


def test_a_checkpoint_that_fails_is_tried_again_after_a_while_not_at_once() -> None:
    world = GuardWorld(jobs={"web": 95 * MIB}, failing={"checkpoint web"})

    def mended() -> frozenset[Event]:
        world.failing.clear()
        return NOTHING

    world.script = [lambda: NOTHING, lambda: NOTHING, mended, *([lambda: NOTHING] * 40)]
    teller = run(world)
    assert world.journal.count("checkpoint web") == 2
    assert teller.told.count("helpless") == 1
    assert world.durable


def test_somebody_who_died_after_the_kill_and_before_it_was_written_down_is_still_brought_back() -> None:
    world = GuardWorld(jobs={"web": 95 * MIB}, failing={"ended web"})
    with pytest.raises(Interrupted):
        _interrupted_at(world, "ended web")
    assert world.waiting["web"].checkpoint is None
    world.failing.clear()
    world.limit = 200 * MIB
    world.script = [lambda: NOTHING]
    assert "resumed web" in run(world).told


def _interrupted_at(world: GuardWorld, name: str) -> None:
    def step(each: str) -> None:
        world.journal.append(each)
        if each == name:
            raise Interrupted(operation="the guard")

    world.step = step  # type: ignore[method-assign]
    try:
        guard(GuardCall(watched=(WATCHED,), policy=Policy()), world.ports(), FakeTeller())
    finally:
        del world.step


def test_nobody_comes_back_while_there_is_no_room_for_all_that_it_used() -> None:
    world = GuardWorld(jobs={"web": 60 * MIB, "batch": 35 * MIB})

    def gone() -> frozenset[Event]:
        del world.jobs["batch"]
        return NOTHING

    world.script = [lambda: NOTHING, lambda: NOTHING, gone, lambda: NOTHING]
    teller = run(world)
    assert teller.told == ["reclaim done", "checkpoint done", "resumed web"]
    assert world.journal[-1] == "bring back web"


def test_a_restore_that_fails_is_told_and_tried_again_later() -> None:
    world = GuardWorld(jobs={"web": 95 * MIB}, failing={"bring back web"})

    def raised() -> frozenset[Event]:
        world.limit = 200 * MIB
        return NOTHING

    world.script = [raised, *([lambda: NOTHING] * 7)]
    teller = run(world)
    assert teller.told.count("not resumed web") == 2
    assert set(world.waiting) == {"web"}


def test_who_waits_is_not_forgotten_while_the_store_is_away_or_its_cgroup_cannot_be_made() -> None:
    world = GuardWorld(jobs={"web": 95 * MIB}, failing={"ended web"})
    with pytest.raises(Interrupted):
        _interrupted_at(world, "ended web")
    assert world.waiting["web"].checkpoint is None, "only the store knows it"
    world.limit, world.failing = 200 * MIB, {"find"}

    def back(then: set[str]):  # type: ignore[no-untyped-def]
        def happens() -> frozenset[Event]:
            assert set(world.waiting) == {"web"}
            world.failing = then
            return NOTHING

        return happens

    world.script = [lambda: NOTHING, back({"keep"}), *([lambda: NOTHING] * 5), back(set())]
    world.script += [lambda: NOTHING] * 20
    teller = run(world)
    assert teller.told.count("resumed web") == 1
    # Every second it waits, but it is told only when it was tried.
    assert 2 <= teller.told.count("not resumed web") <= 4
    assert not world.waiting


def test_a_job_that_was_ended_is_told_as_checkpointed_though_its_cgroup_cannot_be_kept() -> None:
    world = GuardWorld(jobs={"web": 95 * MIB}, failing={"keep"})
    assert run(world, once=True).told[:2] == ["reclaim done", "checkpoint done"]


def test_tasks_that_stand_still_for_memory_are_relieved_by_less_memory_not_by_a_share_of_the_limit() -> None:
    world = GuardWorld(jobs={"web": 60 * MIB})
    stalls = AtPsi(full=False, stall_ns=Nanoseconds(SECOND // 5), window_ns=Nanoseconds(2 * SECOND))
    seconds = 0

    def passes() -> frozenset[Event]:
        nonlocal seconds
        seconds += 1
        assert "web" not in world.jobs, (
            "what has just been ended for it is not brought back into the same need"
        )
        return NOTHING

    world.script = [lambda: frozenset((Event.PSI,)), *([passes] * 50), *([lambda: NOTHING] * 15)]
    teller = run(world, Reclaim(at=stalls), TakeCheckpoint(at=stalls))
    assert teller.told == ["reclaim done", "checkpoint done", "resumed web"]
    assert seconds == 50


def test_a_guard_ends_when_nothing_is_left() -> None:
    world = GuardWorld(jobs={"web": 10 * MIB})

    def gone() -> frozenset[Event]:
        world.jobs.clear()
        return NOTHING

    world.script = [gone]
    assert run(world).told == ["ended"]


def test_relief_of_one_victim_now_ends_with_the_step_that_ended_it() -> None:
    world = GuardWorld(jobs={"web": 10 * MIB})
    call = ReliefCall(
        watched=WATCHED,
        victim=a_victim("web"),
        steps=(TakeCheckpoint(), KillVictim()),
        event=Event.ASKED,
        goal=None,
    )
    relief = relieve(call, world.ports())
    assert relief.ended
    assert relief.relieved
    assert relief.checkpoint == "id-web"
    assert "kill web" not in world.journal
