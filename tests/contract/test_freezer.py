"""What every freezer promises: the fake, version 2 and version 1, where it is and gathered."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest
from fakes.freezer import FakeFreezer, RecordingJournal
from real.ticking import living_operation, scratch_cgroup, ticking

from ckpt.flow.ports import Freezer
from ckpt.host import cgroups
from ckpt.host.freezer import CgroupFreezer, GatheringFreezer
from ckpt.host.freezer_control import control_of
from ckpt.host.gathering import Gathering
from ckpt.host.journal import Frozen, Killing
from ckpt.host.process_table import descendants
from ckpt.units import SECOND, Nanoseconds

TIMEOUT = Nanoseconds(5 * SECOND)


@dataclass
class Setup:
    """A freezer, its journal, and what can be seen and done from outside."""

    freezer: Freezer
    journal: RecordingJournal
    runs: Callable[[], bool]
    stands_still: Callable[[], bool]
    alive: Callable[[], int]
    hold: Callable[[], None]
    let_go: Callable[[], None]


def _fake(_stack: ExitStack) -> Setup:
    journal = RecordingJournal()
    fake = FakeFreezer(journal)

    def set_held(value: bool) -> Callable[[], None]:  # noqa: FBT001
        return lambda: setattr(fake, "held", value)

    return Setup(
        freezer=fake,
        journal=journal,
        runs=lambda: fake.processes > 0 and not fake.held,
        stands_still=lambda: fake.held or fake.processes == 0,
        alive=lambda: fake.processes,
        hold=set_held(True),
        let_go=set_held(False),
    )


def _real(stack: ExitStack, version: int, *, gathered: bool) -> Setup:
    if os.geteuid() != 0:
        pytest.skip("cgroups need root")
    hierarchy = cgroups.unified() if version == 2 else cgroups.freezer_v1()
    if hierarchy is None:
        pytest.skip(f"no freezer of version {version} is mounted")
    place = stack.enter_context(scratch_cgroup(hierarchy))
    subject = stack.enter_context(ticking(3))
    neighbour = stack.enter_context(ticking(1)) if gathered else None
    for each in (subject, neighbour):
        if each is not None:
            each.move_into(place)
    journal = RecordingJournal()
    freezer: Freezer
    if gathered:
        freezer = GatheringFreezer(
            Gathering(
                subject="the test",
                operation_id=living_operation(),
                members=lambda table, known: descendants({subject.root, *known}, table),
                note=journal.note,
            ),
            journal,
        )
        freezer.gather()
        stack.callback(freezer.release)
        stack.callback(freezer.thaw)
    else:
        freezer = CgroupFreezer(place, journal)
    control = control_of(freezer.cgroup)
    assert control is not None
    return Setup(
        freezer=freezer,
        journal=journal,
        runs=subject.runs,
        stands_still=subject.stands_still,
        alive=lambda: len(subject.alive()),
        hold=lambda: control.freeze(TIMEOUT),
        let_go=control.thaw,
    )


@pytest.fixture(params=["fake", "version 2", "version 1", "version 2, gathered"])
def setup(request: pytest.FixtureRequest) -> Iterator[Setup]:
    with ExitStack() as stack:
        match request.param:
            case "fake":
                yield _fake(stack)
            case "version 2":
                yield _real(stack, 2, gathered=False)
            case "version 1":
                yield _real(stack, 1, gathered=False)
            case _:
                yield _real(stack, 2, gathered=True)


def test_a_frozen_workload_stands_still_and_a_thawed_one_goes_on(setup: Setup) -> None:
    setup.freezer.freeze(TIMEOUT)
    assert setup.freezer.is_frozen()
    assert setup.stands_still()
    setup.freezer.thaw()
    assert not setup.freezer.is_frozen()
    assert setup.runs()


def test_the_freeze_is_noted_after_the_guardian_is_up_and_forgotten_after_the_thaw(setup: Setup) -> None:
    setup.freezer.freeze(TIMEOUT)
    assert setup.journal.guardian_awaited
    expected = Frozen(cgroup=setup.freezer.cgroup, held_before=False)
    assert expected in setup.journal.open_steps
    setup.freezer.thaw()
    assert not any(isinstance(step, Frozen) for step in setup.journal.open_steps)


def test_thaw_can_be_repeated_and_needs_no_freeze_before(setup: Setup) -> None:
    setup.freezer.thaw()
    setup.freezer.freeze(TIMEOUT)
    setup.freezer.thaw()
    setup.freezer.thaw()
    assert setup.runs()


def test_what_criu_left_thawed_is_seen_and_can_be_frozen_again(setup: Setup) -> None:
    setup.freezer.freeze(TIMEOUT)
    setup.let_go()
    assert not setup.freezer.is_frozen()
    setup.freezer.freeze(TIMEOUT)
    assert setup.freezer.is_frozen()
    setup.freezer.thaw()
    assert setup.runs()


def test_a_workload_that_somebody_else_froze_is_left_frozen(setup: Setup) -> None:
    setup.hold()
    setup.freezer.freeze(TIMEOUT)
    assert Frozen(cgroup=setup.freezer.cgroup, held_before=True) in setup.journal.noted
    setup.let_go()  # as CRIU may do
    setup.freezer.thaw()
    assert setup.freezer.is_frozen()
    setup.let_go()
    assert setup.runs()


def test_thaw_without_a_freeze_of_ours_leaves_the_freeze_of_somebody_else(setup: Setup) -> None:
    setup.hold()
    setup.freezer.thaw()
    assert setup.freezer.is_frozen()
    setup.let_go()


@pytest.mark.parametrize("frozen", [True, False])
def test_kill_leaves_no_task_and_no_frozen_cgroup(setup: Setup, *, frozen: bool) -> None:
    if frozen:
        setup.freezer.freeze(TIMEOUT)
    setup.freezer.kill()
    assert setup.alive() == 0
    assert not setup.freezer.is_frozen()
    assert Killing(cgroup=setup.freezer.cgroup) in setup.journal.noted
    assert not any(isinstance(step, Frozen | Killing) for step in setup.journal.open_steps)
    setup.freezer.kill()
    setup.freezer.thaw()
    setup.freezer.release()


def test_gathering_and_releasing_again_changes_nothing(setup: Setup) -> None:
    setup.freezer.gather()
    setup.freezer.release()
    setup.freezer.release()
    assert setup.runs()
    assert not setup.journal.open_steps
