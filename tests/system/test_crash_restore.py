"""A restore that dies at any point: nothing of it is left, or it runs and is a job; and it can be done again."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable

import pytest
from harness.command import Ckpt
from harness.subjects import Workload
from harness.traces import Traces
from real.crashing import BigCounting, Counting, Scene, Subject

pytestmark = pytest.mark.system

NewSubject = Callable[[], Subject]


@pytest.fixture
def scene(ckpt: Ckpt, traces: Traces) -> Scene:
    return Scene(ckpt, traces)


@pytest.fixture
def of_cgroup(workload: Workload) -> NewSubject:
    def make() -> Subject:
        programs = [workload.start(Counting) for _ in range(2)]
        return Subject(("--cgroup", str(workload.cgroup)), programs)

    return make


@pytest.fixture
def of_pid(workload: Workload) -> NewSubject:
    def make() -> Subject:
        program = workload.start(Counting)
        return Subject(("--pid", str(program.pid)), [program])

    return make


@pytest.fixture
def of_job(workload: Workload, ckpt: Ckpt) -> NewSubject:
    def make() -> Subject:
        program, name = workload.new(Counting), ckpt.new_job_name()
        program.pid = ckpt("run", "--detach", "--name", name, "--", *program.command())["pid"]
        program.await_ready()
        return Subject((name,), [program])

    return make


@pytest.fixture(params=["of_cgroup", "of_pid", "of_job"])
def stopped(request: pytest.FixtureRequest, scene: Scene) -> tuple[Subject, str]:
    """A workload that was dumped and stopped, and the id of its checkpoint."""
    subject: Subject = request.getfixturevalue(request.param)()
    return subject, _stop(scene, subject)


@pytest.mark.parametrize("phase", ["fetched", "restored", "kept"])
def test_kill_9_at_this_phase_leaves_nothing_and_a_second_restore_works(
    phase: str, stopped: tuple[Subject, str], scene: Scene, workload: Workload
) -> None:
    subject, checkpoint = stopped
    jobs = scene.jobs()
    crash = scene.crash("restore", checkpoint, CKPT_FAILPOINT=phase)
    assert crash.status == -signal.SIGKILL, crash.err
    scene.await_nothing_left()
    scene.assert_recovered()
    assert workload.cgroup.exists(), "the user's own cgroup was removed"
    assert scene.jobs() == jobs
    scene.ckpt("restore", checkpoint)
    subject.assert_runs()


def test_kill_9_before_the_restored_is_let_go_leaves_nothing_and_after_that_it_lives(
    of_pid: NewSubject, scene: Scene
) -> None:
    subject = of_pid()
    checkpoint = _stop(scene, subject)
    jobs = scene.jobs()
    scene.crash("restore", checkpoint, CKPT_FAILPOINT="filed")
    scene.await_nothing_left()
    scene.assert_recovered()
    assert scene.jobs() == jobs
    crash = scene.crash("restore", checkpoint, CKPT_FAILPOINT="let-go")
    assert crash.status == -signal.SIGKILL, crash.err
    subject.assert_runs()
    scene.assert_recovered()
    subject.assert_runs()
    scene.ckpt("stop", checkpoint[:12])


@pytest.mark.parametrize("phase", ["fetched", "restored", "kept"])
def test_a_signal_undoes_the_restore(phase: str, of_cgroup: NewSubject, scene: Scene) -> None:
    subject = of_cgroup()
    checkpoint = _stop(scene, subject)
    jobs = scene.jobs()
    crash = scene.crash("restore", checkpoint, CKPT_FAILPOINT=f"{phase}:SIGTERM")
    assert crash.status == 130, crash.err
    scene.await_nothing_left()
    assert scene.jobs() == jobs
    scene.ckpt("restore", checkpoint)
    subject.assert_runs()


def test_without_a_guardian_recover_takes_the_half_restored_away(of_pid: NewSubject, scene: Scene) -> None:
    subject = of_pid()
    checkpoint = _stop(scene, subject)
    scene.die_without_guardian("restored", "restore", checkpoint)
    document = scene.ckpt("recover")
    assert document["problems"] == []
    assert f"removed what was left of restore of {checkpoint[:12]}" in [
        each["done"] for each in document["actions"]
    ]
    scene.await_nothing_left()
    scene.ckpt("restore", checkpoint)
    subject.assert_runs()


def test_kill_9_at_seven_moments_of_a_restore_leaves_all_or_nothing(workload: Workload, scene: Scene) -> None:
    program = workload.start(BigCounting)
    subject = Subject(("--pid", str(program.pid)), [program])
    checkpoint = _stop(scene, subject)
    began = time.monotonic()
    job = scene.ckpt("restore", checkpoint)["job"]
    took_s = time.monotonic() - began
    chance = random.Random(7)
    for moment in range(7):
        if job in scene.jobs("running"):
            checkpoint = _stop(scene, Subject((job,), [program]))
        process = scene.ckpt.start("restore", checkpoint, "--name", job)
        # Any moment is as good as another: there is no condition to wait for. The last third is where it happens.
        time.sleep((0.5 + (moment + chance.random()) / 14) * took_s)
        process.kill()
        scene.await_end(process)
        scene.await_settled()
        scene.ckpt("recover")  # the guardian may not have been up yet
        running = scene.jobs("running")
        if running:
            subject.assert_runs()
        else:
            scene.await_nothing_left()
            # It may have run for the moment between its start and its filing, and will do that again.
            program.taken_back += 1
        scene.assert_recovered()
    if job not in scene.jobs("running"):
        scene.ckpt("restore", checkpoint, "--name", job)
    subject.assert_runs()


def _stop(scene: Scene, subject: Subject) -> str:
    checkpoint: str = scene.ckpt("dump", "--stop", *subject.target)["id"]
    scene.remember(alive=[])
    scene.await_nothing_left()
    return checkpoint
