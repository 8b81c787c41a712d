"""A dump that dies at any point: the workload runs again within a second, and nothing is left behind."""

from __future__ import annotations

import glob
import json
import os
import random
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from harness.command import Ckpt
from harness.pauses import Pauses
from harness.subjects import PYTHON, Workload
from harness.traces import Traces
from harness.waiting import await_condition
from real.crashing import BigCounting, Counting, Scene, Subject

pytestmark = pytest.mark.system

PHASES = ["freezing", "frozen", "written", "dumped", "thawed", "stored", "durable"]
PHASES_OF_STOP = ["freezing", "frozen", "written", "dumped", "stored", "durable", "killed"]

RUNS_AGAIN_MS = 1000

# Sends back what comes; big enough that CRIU can be stopped while it writes.
ECHO = """
import socket, sys
ballast = bytearray(b"x") * (400 << 20)
connection = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
while data := connection.recv(100):
    connection.sendall(data)
"""

NewSubject = Callable[[], Subject]


@pytest.fixture
def scene(ckpt: Ckpt, traces: Traces) -> Scene:
    return Scene(ckpt, traces)


@pytest.fixture
def of_cgroup(workload: Workload) -> NewSubject:
    """Two trees in a cgroup of their own."""

    def make() -> Subject:
        programs = [workload.start(Counting) for _ in range(2)]
        return Subject(("--cgroup", str(workload.cgroup)), programs)

    return make


@pytest.fixture
def of_pid(workload: Workload) -> NewSubject:
    """A process that shares its cgroup with another one, so that it is gathered."""

    def make() -> Subject:
        programs = [workload.start(Counting) for _ in range(2)]
        return Subject(("--pid", str(programs[0].pid)), programs[:1], programs[1:])

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
def subject(request: pytest.FixtureRequest, scene: Scene) -> Subject:
    made: Subject = request.getfixturevalue(request.param)()
    scene.remember()
    return made


@pytest.mark.parametrize("phase", PHASES)
def test_kill_9_of_the_controller_at_this_phase_leaves_the_workload_running_and_nothing_else(
    phase: str, subject: Subject, scene: Scene, pauses: Pauses
) -> None:
    crash = scene.crash("dump", *subject.target, CKPT_FAILPOINT=phase)
    assert crash.status == -signal.SIGKILL, crash.err
    scene.await_nothing_left()
    subject.assert_runs()
    assert subject.ran_again_ms(crash.when_ns, pauses) < RUNS_AGAIN_MS
    scene.assert_recovered()
    scene.ckpt("dump", *subject.target)
    subject.assert_runs()


@pytest.mark.parametrize("phase", PHASES_OF_STOP)
def test_kill_9_of_a_dump_that_is_to_stop_the_workload_never_loses_both_and_never_leaves_it_frozen(
    phase: str, subject: Subject, scene: Scene, pauses: Pauses
) -> None:
    crash = scene.crash("dump", "--stop", *subject.target, CKPT_FAILPOINT=phase)
    assert crash.status == -signal.SIGKILL, crash.err
    kept = scene.ckpt("list")["checkpoints"]
    assert len(kept) == (phase in {"durable", "killed"})
    if phase == "killed":
        scene.await_nothing_left(alive=[program.pid for program in subject.neighbours])
        scene.assert_recovered()
        scene.ckpt("restore", kept[0]["id"])
        subject.assert_runs()
        return
    scene.await_nothing_left()
    subject.assert_runs()
    assert subject.ran_again_ms(crash.when_ns, pauses) < RUNS_AGAIN_MS
    scene.assert_recovered()


@pytest.mark.parametrize("phase", ["freezing", "frozen", "written", "thawed", "durable"])
def test_when_the_guardian_was_killed_before_recover_mends_it_and_says_what(
    phase: str, of_pid: NewSubject, scene: Scene
) -> None:
    subject = of_pid()
    scene.remember()
    scene.die_without_guardian(phase, "dump", *subject.target)
    document = scene.ckpt("recover")
    assert document["problems"] == []
    done = [each["done"] for each in document["actions"]]
    assert ("thawed" in done) == (phase in {"frozen", "written"})
    assert "put 1 process(es) back and removed the cgroup" in done
    assert f"removed what was left of dump of pid {subject.programs[0].pid}" in done
    scene.await_nothing_left()
    subject.assert_runs()
    scene.assert_recovered()


def test_when_nobody_recovered_the_next_dump_does_it_first(of_pid: NewSubject, scene: Scene) -> None:
    subject = of_pid()
    scene.remember()
    scene.die_without_guardian("frozen", "dump", *subject.target)
    scene.ckpt("dump", *subject.target)
    subject.assert_runs()
    scene.ckpt("recover")  # the dead one's lock of the cgroup that it had made
    scene.await_nothing_left()


def test_kill_9_at_ten_moments_of_a_dump_of_200_mib(workload: Workload, scene: Scene, pauses: Pauses) -> None:
    program = workload.start(BigCounting)
    subject = Subject(("--pid", str(program.pid)), [program])
    scene.remember()
    began = time.monotonic()
    scene.ckpt("dump", *subject.target)
    took_s = time.monotonic() - began
    chance = random.Random(5)
    for moment in range(10):
        process = scene.ckpt.start("dump", *subject.target)
        _sleep_until_a_moment((moment + chance.random()) / 10 * took_s)
        process.kill()
        crash = scene.await_end(process)
        subject.assert_runs()
        scene.await_settled()
        scene.ckpt("recover")  # the guardian may not have been up yet
        scene.await_nothing_left()
        assert subject.ran_again_ms(crash.when_ns, pauses) < RUNS_AGAIN_MS
    scene.assert_recovered()
    scene.ckpt("dump", *subject.target)
    assert scene.ckpt("verify")["ok"]


@pytest.mark.parametrize(
    ("phase", "number"),
    [
        ("freezing", "SIGHUP"),
        ("frozen", "SIGINT"),
        ("frozen", "SIGTERM"),
        ("written", "SIGINT"),
        ("thawed", "SIGTERM"),
        ("stored", "SIGINT"),
    ],
)
def test_a_signal_undoes_the_dump(
    phase: str, number: str, of_pid: NewSubject, scene: Scene, pauses: Pauses
) -> None:
    subject = of_pid()
    scene.remember()
    crash = scene.crash("dump", "--json", *subject.target, CKPT_FAILPOINT=f"{phase}:{number}")
    assert crash.status == 130, crash.err
    assert json.loads(crash.out)["error"]["slug"] == "interrupted"
    assert crash.err == ""
    scene.await_nothing_left()
    subject.assert_runs()
    assert subject.ran_again_ms(crash.when_ns, pauses) < RUNS_AGAIN_MS
    scene.assert_recovered()
    assert scene.ckpt("list")["checkpoints"] == []


def test_a_signal_while_criu_writes_200_mib_lets_the_workload_go_on_at_once(
    workload: Workload, scene: Scene, pauses: Pauses
) -> None:
    program = workload.start(BigCounting)
    subject = Subject(("--pid", str(program.pid)), [program])
    scene.remember()
    for number in (signal.SIGINT, signal.SIGTERM):
        process = scene.ckpt.start("dump", *subject.target)
        staging = scene.ckpt.state / "operations"
        await_condition(lambda: _is_writing(staging), "CRIU to write pages")  # noqa: B023
        process.send_signal(number)
        crash = scene.await_end(process)
        assert crash.status == 130, crash.err
        scene.await_nothing_left()
        subject.assert_runs()
        assert subject.ran_again_ms(crash.when_ns, pauses) < RUNS_AGAIN_MS


def test_a_connection_survives_a_criu_that_does_not_answer_and_is_killed_with_the_socket_in_its_hands(
    workload: Workload, scene: Scene
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        pid = workload.spawn([PYTHON, "-c", ECHO, str(server.getsockname()[1])], scene.traces.folder)
        peer, _ = server.accept()
    with peer:
        peer.settimeout(5)
        scene.remember()
        process = scene.ckpt.start("dump", "--json", "--tcp-established", "--pid", pid)
        await_condition(lambda: _is_writing(scene.ckpt.state / "operations"), "CRIU to write pages")
        criu = next(step["pid"] for step in scene.entry()["steps"] if step["kind"] == "CriuStarted")
        os.kill(criu, signal.SIGSTOP)
        assert scene.tables_left(), "CRIU was too quick"
        process.send_signal(signal.SIGINT)
        crash = scene.await_end(process)
        assert crash.status == 130, crash.err
        peer.sendall(b"still there?")
        assert peer.recv(100) == b"still there?"
        scene.await_nothing_left()
        scene.assert_recovered()
        scene.ckpt("dump", "--tcp-established", "--pid", pid)
        peer.sendall(b"and now?")
        assert peer.recv(100) == b"and now?"


def _is_writing(operations: Path) -> bool:
    # Path.glob() raises where a directory goes meanwhile.
    pages = glob.glob(f"{operations}/*/staging/*/pages-*.img")
    return any(os.stat(path).st_size > 1 << 20 for path in pages)


def _sleep_until_a_moment(seconds: float) -> None:
    # Any moment is as good as another: there is no condition to wait for.
    time.sleep(seconds)
