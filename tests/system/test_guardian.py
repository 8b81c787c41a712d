"""kill -9 of the controller, of the guardian and of both, at each phase: the workload runs on, nothing is left."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.pauses import Pauses
from real.controllers import controller, said, said_pid
from real.ticking import Ticking, await_true, is_running, scratch_cgroup, ticking

from ckpt.host import cgroups, recovery
from ckpt.host.cgroups import Hierarchy
from ckpt.host.freezer_control import control_of
from ckpt.host.gathering import is_transient
from ckpt.host.operations import JournaledOperations
from ckpt.units import SECOND, Nanoseconds

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(os.geteuid() != 0, reason="cgroups need root"),
]
PHASES = ["begun", "guarded", "gathered", "frozen", "thawed", "released"]


@pytest.fixture
def unified() -> Hierarchy:
    found = cgroups.unified()
    if found is None:
        pytest.skip("no cgroup version 2 is mounted")
    return found


@pytest.fixture
def subject(unified: Hierarchy) -> Iterator[Ticking]:
    """A tree that shares its cgroup with another process, so that it must be gathered."""
    with scratch_cgroup(unified) as place, ticking(3) as tree, ticking(1) as neighbour:
        tree.move_into(place)
        neighbour.move_into(place)
        yield tree


def assert_as_before(subject: Ticking, unified: Hierarchy, state: Path, place: set[str | None]) -> None:
    operations = state / "operations"
    await_true(lambda: not operations.exists() or not list(operations.iterdir()), "the operation is gone")
    assert subject.runs()
    assert subject.place(unified) == place
    (directory,) = place
    assert directory is not None
    assert not [each for each in cgroups.with_all_below(directory) if is_transient(each)]
    assert recovery.recover_dead(str(state)) == ()


@pytest.mark.alone
@pytest.mark.parametrize("phase", PHASES)
def test_after_kill_9_of_the_controller_the_workload_runs_within_a_second(
    subject: Ticking, unified: Hierarchy, tmp_path: Path, phase: str, pauses: Pauses
) -> None:
    place = subject.place(unified)
    with controller(tmp_path, "pid", str(subject.root), failpoint=phase) as process:
        assert process.wait(20) == -signal.SIGKILL
        died = time.monotonic()
        await_true(lambda: subject.runs(0.02), "the workload runs", 1.0)
        await_true(lambda: subject.place(unified) == place, "the processes are back", 1.0)
        assert pauses.ran_s(died) < 1.0
    if phase == "begun":  # there was no guardian yet, and nothing to undo but the entry
        assert len(recovery.recover_all(str(tmp_path))) == 1
    assert_as_before(subject, unified, tmp_path, place)


@pytest.mark.alone
def test_a_workload_in_its_own_cgroup_is_thawed_where_it_is(unified: Hierarchy, tmp_path: Path) -> None:
    with scratch_cgroup(unified) as place, ticking(2) as subject:
        subject.move_into(place)
        with controller(tmp_path, "cgroup", place, failpoint="frozen") as process:
            assert process.wait(20) == -signal.SIGKILL
            await_true(lambda: subject.runs(0.02), "the workload runs", 1.0)
        assert_as_before(subject, unified, tmp_path, {place})


@pytest.mark.alone
def test_a_criu_that_goes_on_without_its_controller_is_ended_first(
    subject: Ticking, unified: Hierarchy, tmp_path: Path, pauses: Pauses
) -> None:
    place = subject.place(unified)
    with controller(tmp_path, "pid", str(subject.root), "criu", failpoint="frozen") as process:
        criu = said_pid(process, "criu")
        assert process.wait(20) == -signal.SIGKILL
        died = time.monotonic()
        await_true(lambda: subject.runs(0.02), "the workload runs", 1.0)
        assert pauses.ran_s(died) < 1.0
        assert not is_running(criu)
    assert_as_before(subject, unified, tmp_path, place)


def test_a_workload_that_was_frozen_before_is_left_frozen(unified: Hierarchy, tmp_path: Path) -> None:
    with scratch_cgroup(unified) as place, ticking(2) as subject:
        subject.move_into(place)
        cgroups.write(place, "cgroup.freeze", "1")
        with controller(tmp_path, "cgroup", place, failpoint="frozen") as process:
            assert process.wait(20) == -signal.SIGKILL
        await_true(lambda: not list((tmp_path / "operations").iterdir()), "the operation is gone")
        assert cgroups.read(place, "cgroup.freeze") == "1"
        assert subject.stands_still()
        cgroups.write(place, "cgroup.freeze", "0")
        assert subject.runs()


def test_when_the_guardian_dies_too_recover_mends_it_and_then_has_nothing_to_do(
    subject: Ticking, unified: Hierarchy, tmp_path: Path
) -> None:
    place = subject.place(unified)
    with controller(tmp_path, "pid", str(subject.root), "hold") as process:
        guardian = said_pid(process, "guardian")
        cgroup = said(process, "cgroup")
        os.kill(guardian, signal.SIGKILL)
        process.kill()
        process.wait()
        assert subject.stands_still()
        actions = recovery.recover_all(str(tmp_path))
    assert [action.done for action in actions] == [
        "thawed",
        "put 3 process(es) back and removed the cgroup",
        "removed what was left of a test",
    ]
    assert not any(action.problem for action in actions)
    assert not os.path.exists(cgroup)
    assert_as_before(subject, unified, tmp_path, place)
    assert recovery.recover_all(str(tmp_path)) == ()


def test_recover_leaves_an_operation_alone_whose_controller_lives(
    subject: Ticking, unified: Hierarchy, tmp_path: Path
) -> None:
    place = subject.place(unified)
    with controller(tmp_path, "pid", str(subject.root), "hold") as process:
        cgroup = said(process, "cgroup")
        assert recovery.recover_all(str(tmp_path)) == ()
        # Not even one with another state directory: the cgroup's name tells whose it is.
        assert recovery.recover_all(str(tmp_path / "other")) == ()
        assert subject.stands_still()
        assert subject.place(unified) == {cgroup}
        assert process.stdin is not None
        process.stdin.close()
        said(process, "ended")
    assert_as_before(subject, unified, tmp_path, place)


def test_a_cgroup_of_ours_that_no_entry_knows_is_thawed_and_emptied(
    subject: Ticking, unified: Hierarchy, tmp_path: Path
) -> None:
    place = subject.place(unified)
    left = f"{next(iter(place))}/ckpt-0123456789ab-4194304-1"  # no process has this pid
    cgroups.make(left)
    subject.move_into(left)
    control = control_of(left)
    assert control is not None
    control.freeze(Nanoseconds(5 * SECOND))
    actions = recovery.recover_all(str(tmp_path))
    assert [action.done for action in actions] == ["put 3 process(es) back and removed the cgroup"]
    assert_as_before(subject, unified, tmp_path, place)


def test_a_kill_that_was_begun_is_finished_and_never_half_done(unified: Hierarchy, tmp_path: Path) -> None:
    with scratch_cgroup(unified) as place, ticking(3) as subject:
        subject.move_into(place)
        with controller(tmp_path, "cgroup", place, "kill", failpoint="killed") as process:
            assert process.wait(20) == -signal.SIGKILL
        await_true(lambda: not list((tmp_path / "operations").iterdir()), "the operation is gone")
        assert not subject.alive()
        assert cgroups.read(place, "cgroup.freeze") == "0"


def test_a_guardian_that_died_is_replaced_before_the_next_freeze(tmp_path: Path) -> None:
    operation = JournaledOperations(str(tmp_path)).begin("a test")
    operation.guard()
    operation.await_guardian()
    assert operation._guardian is not None
    first = operation._guardian.pid
    os.kill(first, signal.SIGKILL)
    await_true(lambda: not is_running(first), "the guardian is dead")
    operation.await_guardian()
    assert operation._guardian.pid != first
    assert is_running(operation._guardian.pid)
    operation.end()
    assert not list((tmp_path / "operations").iterdir())


def test_the_guardian_holds_nothing_of_the_controller_and_ignores_what_ends_a_session(
    tmp_path: Path,
) -> None:
    operation = JournaledOperations(str(tmp_path)).begin("a test")
    operation.guard()
    operation.await_guardian()
    assert operation._guardian is not None
    pid = operation._guardian.pid
    links = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
    own = str(tmp_path / "operations" / operation.id / "guardian.log")
    assert sorted(link.partition(":")[0] for link in links if link != own) == [
        "/dev/null",
        "/dev/null",
        "anon_inode",
        "socket",
    ]
    assert os.getsid(pid) == pid
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        os.kill(pid, number)
    assert is_running(pid)
    operation.end()
    assert not is_running(pid)
