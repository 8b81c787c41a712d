"""Jobs by the command line: run, ps, logs, dump, restore, wait, stop, rm-job; in the foreground and detached."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from harness.cgroups import Cgroup
from harness.command import Ckpt
from harness.processes import is_dead, kill, namespace_of
from harness.subjects import Program, Workload
from harness.traces import Traces
from harness.waiting import await_condition

pytestmark = pytest.mark.system

#: Ends with code 7 as soon as there is a file of the name that it is given.
UNTIL_FILE = ["/bin/sh", "-c", 'while [ ! -e "$0" ]; do sleep 0.02; done; exit 7']
#: Says that it is there; ends with code 9 on SIGTERM, 4 on SIGINT; tells of SIGUSR1.
ON_SIGNAL = [
    "/bin/sh",
    "-c",
    'trap "exit 9" TERM; trap "exit 4" INT; trap "echo one" USR1; echo ready; while :; do sleep 0.02; done',
]
#: Counts on its standard output.
COUNTING = ["/bin/sh", "-c", "n=0; while :; do echo $((n += 1)); sleep 0.02; done"]


def start(ckpt: Ckpt, name: str, *command: str) -> dict[str, Any]:
    """Start a detached job."""
    document = ckpt("run", "--detach", "--name", name, "--", *command)
    assert document.keys() >= {"job", "pid", "cgroup"}
    assert document["job"] == name
    assert not is_dead(document["pid"])
    return document


def start_program(ckpt: Ckpt, workload: Workload, kind: str, name: str) -> Program:
    """Start one of the subjects as a detached job."""
    program = workload.new(kind)
    program.pid = start(ckpt, name, *program.command())["pid"]
    program.await_ready()
    return program


def entry(ckpt: Ckpt, name: str) -> dict[str, Any] | None:
    """What `ps` says of one job."""
    return next((job for job in ckpt("ps")["jobs"] if job["name"] == name), None)


def state(ckpt: Ckpt, name: str) -> str:
    job = entry(ckpt, name)
    assert job is not None, f"ps does not know {name}"
    assert job.keys() >= {"name", "state", "pid", "cgroup", "memory_bytes", "checkpoints", "latest"}
    return str(job["state"])


def await_text(path: Path, wanted: str) -> None:
    await_condition(
        lambda: path.exists() and wanted in path.read_text(),
        lambda: f"{wanted!r} in {path}: {path.read_text() if path.exists() else 'no such file'}",
    )


def test_a_job_is_known_by_its_name_from_its_start_until_it_is_forgotten(
    workload: Workload, ckpt: Ckpt, traces: Traces
) -> None:
    name = ckpt.new_job_name()
    assert entry(ckpt, name) is None
    start_program(ckpt, workload, "tree", name)
    running = entry(ckpt, name)
    assert running is not None
    assert running["state"] == "running"
    assert running["checkpoints"] == 0
    assert running["memory_bytes"] > 1_000_000
    assert running["pid"] in Cgroup(Path(running["cgroup"])).pids()

    first = ckpt("dump", name)
    assert first["job"] == name
    second = ckpt("dump", name, "--stop")
    assert second["parent"] in (None, first["id"])
    stopped = entry(ckpt, name)
    assert stopped is not None
    assert (stopped["state"], stopped["checkpoints"], stopped["latest"]) == ("stopped", 2, second["id"])

    assert ckpt("restore", name)["id"] == second["id"]
    assert state(ckpt, name) == "running"
    ckpt("stop", name)
    assert state(ckpt, name) == "exited"
    ckpt("rm-job", name)
    assert entry(ckpt, name) is None
    assert [kept["id"] for kept in ckpt("list", "--job", name)["checkpoints"]] == [first["id"], second["id"]]
    await_condition(lambda: not traces.processes(), lambda: f"no process to be left: {traces.processes()}")
    assert not Path(running["cgroup"]).exists()


@pytest.mark.parametrize("kind", ["tree", "shell", "server", "events", "redis"])
def test_a_job_that_was_dumped_and_stopped_goes_on_in_its_namespaces_when_restored_by_its_name(
    kind: str, workload: Workload, ckpt: Ckpt
) -> None:
    name = ckpt.new_job_name()
    program = start_program(ckpt, workload, kind, name)
    for _ in range(2):
        dumped = ckpt("dump", name, "--stop")
        assert len(dumped["trees"]) == 1
        restored = ckpt("restore", name)
        assert restored["id"] == dumped["id"]
        assert restored["job"] == name
        for space in ("pid", "ipc", "mnt"):
            assert namespace_of(restored["pid"], space) != namespace_of(os.getpid(), space)
        program.await_progress()
        program.check()
    ckpt("stop", name)


def test_a_job_that_was_killed_by_accident_is_taken_back_to_its_newest_checkpoint(
    workload: Workload, ckpt: Ckpt
) -> None:
    name = ckpt.new_job_name()
    program = start_program(ckpt, workload, "clocks", name)
    dumped = ckpt("dump", name)
    program.await_progress()
    program.check()
    job = entry(ckpt, name)
    assert job is not None
    kill(Cgroup(Path(job["cgroup"])).pids())
    await_condition(lambda: state(ckpt, name) == "exited", "the job to be known as exited")
    assert ckpt("wait", name, exit_code=128 + signal.SIGKILL)["exit_code"] == 128 + signal.SIGKILL

    assert ckpt("restore", f"{name}@latest")["id"] == dumped["id"]
    program.was_taken_back()
    program.await_progress()
    program.check()


def test_wait_gives_the_exit_code_of_a_job(ckpt: Ckpt, tmp_path: Path) -> None:
    name = ckpt.new_job_name()
    start(ckpt, name, *UNTIL_FILE, str(tmp_path / "end"))
    waiting = ckpt.start("wait", name)
    assert state(ckpt, name) == "running"
    assert waiting.poll() is None
    (tmp_path / "end").touch()
    assert waiting.wait(20) == 7
    # It stays known.
    ckpt("wait", name, exit_code=7)
    assert state(ckpt, name) == "exited"


def test_wait_gives_the_exit_code_of_a_restored_job(ckpt: Ckpt, tmp_path: Path) -> None:
    name = ckpt.new_job_name()
    start(ckpt, name, *UNTIL_FILE, str(tmp_path / "end"))
    ckpt("dump", name, "--stop")
    ckpt("restore", name)
    waiting = ckpt.start("wait", name)
    assert state(ckpt, name) == "running"
    assert waiting.poll() is None
    (tmp_path / "end").touch()
    assert waiting.wait(20) == 7
    ckpt("wait", name, exit_code=7)


def test_wait_gives_the_exit_code_of_a_restored_workload_that_was_never_a_job(
    workload: Workload, ckpt: Ckpt, tmp_path: Path
) -> None:
    name = ckpt.new_job_name()
    pid = workload.spawn([*UNTIL_FILE, str(tmp_path / "end")], tmp_path)
    await_condition(lambda: pid in workload.pids(), "the program in its cgroup")
    ckpt("dump", "--cgroup", workload.cgroup, "--name", name, "--stop")
    assert ckpt("restore", name)["pid"] == pid
    (tmp_path / "end").touch()
    ckpt("wait", name, exit_code=7)


def test_stop_lets_a_job_end_by_itself_and_kills_one_that_does_not(ckpt: Ckpt, tmp_path: Path) -> None:
    polite, stubborn = ckpt.new_job_name(), ckpt.new_job_name()
    start(ckpt, polite, *ON_SIGNAL)
    await_condition(lambda: "ready" in ckpt.run("logs", polite).stdout, "the job to set its traps")
    ckpt("stop", polite)
    ckpt("wait", polite, exit_code=9)

    ignoring = 'trap "" TERM; echo ready; while :; do sleep 0.02; done'
    started = start(ckpt, stubborn, "/bin/sh", "-c", ignoring)
    await_condition(lambda: "ready" in ckpt.run("logs", stubborn).stdout, "the job to set its traps")
    ckpt("stop", stubborn, "--grace", "300ms")
    ckpt("wait", stubborn, exit_code=128 + signal.SIGKILL)
    assert is_dead(started["pid"])


def test_logs_go_on_through_dump_and_restore_without_a_gap(ckpt: Ckpt) -> None:
    name = ckpt.new_job_name()
    start(ckpt, name, *COUNTING)

    def counted() -> list[int]:
        return [int(line) for line in ckpt.run("logs", name).stdout.splitlines()]

    await_condition(lambda: len(counted()) > 5, "the job to count")
    ckpt("dump", name, "--stop")
    before = len(counted())
    ckpt("restore", name)
    await_condition(lambda: len(counted()) > before + 5, "the restored job to count on")
    numbers = counted()
    assert numbers == list(range(1, len(numbers) + 1))


def test_a_job_that_was_forgotten_comes_back_under_another_name_or_leaves_nothing(
    ckpt: Ckpt, tmp_path: Path
) -> None:
    old, new, log = ckpt.new_job_name(), ckpt.new_job_name(), tmp_path / "of the command" / "deep" / "log"
    log.parent.mkdir(parents=True)
    counting = f"exec 3>>'{log}'; n=0; while sleep 0.02; do echo $((n += 1)); echo $n >&3; done"
    start(ckpt, old, "/bin/sh", "-c", counting)
    await_condition(lambda: log.read_text().count("\n") > 5, "the job to count")
    dumped = ckpt("dump", old, "--stop")
    ckpt("rm-job", old)
    # Its own log and the other one are gone with their directories.
    shutil.rmtree(log.parents[1])
    ckpt("restore", dumped["id"], "--name", new, exit_code=24, CKPT_CRIU="/bin/false")
    assert not log.parents[1].exists()
    assert not (ckpt.state / "jobs" / old).exists()
    ckpt("restore", dumped["id"], "--name", new)
    await_condition(lambda: log.read_text().count("\n") > 5, "the restored job to count on")
    assert ckpt.run("logs", new).stdout.splitlines()[:5] == log.read_text().splitlines()[:5]
    ckpt("stop", new)
    ckpt("rm-job", new)


def test_the_log_of_a_detached_job_has_both_its_outputs_in_order(ckpt: Ckpt, tmp_path: Path) -> None:
    name, log = ckpt.new_job_name(), tmp_path / "own.log"
    for place in ([], ["--log", log]):
        talking = "echo one; echo two >&2; echo three"
        ckpt("run", "--detach", "--name", name, *place, "--", "/bin/sh", "-c", talking)
        ckpt("wait", name)
        assert ckpt.run("logs", name).stdout == "one\ntwo\nthree\n"
        ckpt("rm-job", name)
    assert log.read_text() == "one\ntwo\nthree\n"


def test_a_job_in_the_foreground_relays_its_output_and_its_exit_code(ckpt: Ckpt) -> None:
    done = ckpt.run(
        "run", "--name", ckpt.new_job_name(), "--", "/bin/sh", "-c", "echo out; echo err >&2; exit 5"
    )
    assert (done.returncode, done.stdout, done.stderr) == (5, "out\n", "err\n")
    done = ckpt.run("run", "--name", ckpt.new_job_name(), "--", sys.executable, "-c", "import os; os.abort()")
    assert done.returncode == 128 + signal.SIGABRT


def test_a_job_that_cannot_be_started_says_so(ckpt: Ckpt) -> None:
    name = ckpt.new_job_name()
    done = ckpt.run("run", "--name", name, "--", "/no/such/program")
    assert done.returncode == 127
    assert "/no/such/program" in done.stderr
    assert entry(ckpt, name) is None
    error = ckpt("run", "--detach", "--name", name, "--", "/no/such/program", exit_code=11)["error"]
    assert "/no/such/program" in error["message"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 9), (signal.SIGINT, 4)])
def test_a_job_in_the_foreground_gets_the_signals_that_ckpt_gets(
    number: signal.Signals, code: int, ckpt: Ckpt, tmp_path: Path
) -> None:
    running = ckpt.start("run", "--name", ckpt.new_job_name(), "--", *ON_SIGNAL)
    await_text(tmp_path / "ckpt.out", "ready")
    running.send_signal(signal.SIGUSR1)
    await_text(tmp_path / "ckpt.out", "one")
    assert running.poll() is None
    running.send_signal(number)
    assert running.wait(20) == code


def test_a_restore_with_attach_relays_output_and_signals_and_ends_as_the_job_does(
    ckpt: Ckpt, tmp_path: Path
) -> None:
    name = ckpt.new_job_name()
    start(ckpt, name, *ON_SIGNAL)
    await_condition(lambda: "ready" in ckpt.run("logs", name).stdout, "the job to set its traps")
    ckpt("dump", name, "--stop")
    attached = ckpt.start("restore", name, "--attach")
    await_condition(lambda: state(ckpt, name) == "running" or attached.poll() is not None, "the job to run")
    attached.send_signal(signal.SIGUSR1)
    await_text(tmp_path / "ckpt.out", "one")
    attached.send_signal(signal.SIGTERM)
    assert attached.wait(20) == 9
    ckpt("wait", name, exit_code=9)


def test_a_job_outlives_the_terminal_and_the_session_that_it_was_started_from(
    workload: Workload, ckpt: Ckpt
) -> None:
    name = ckpt.new_job_name()
    program = workload.new("clocks")
    started = subprocess.Popen(
        [*ckpt.command_line("run", "--detach", "--name", name), "--", *program.command()],
        env=ckpt.environ({}),
        start_new_session=True,
        stdout=subprocess.DEVNULL,
    )
    assert started.wait(20) == 0
    program.await_ready()
    program.await_progress()
    assert state(ckpt, name) == "running"


def test_copies_of_a_job_run_beside_it_under_names_of_their_own(workload: Workload, ckpt: Ckpt) -> None:
    name = ckpt.new_job_name()
    start_program(ckpt, workload, "clocks", name)
    dumped = ckpt("dump", name)
    restored = ckpt("restore", dumped["id"], "--pids", "new", "--count", 2)["restored"]
    copies = [document["job"] for document in restored]
    assert len({name, *copies}) == 3
    assert [state(ckpt, job) for job in [name, *copies]] == ["running"] * 3
    ckpt("stop", copies[0])
    assert [state(ckpt, job) for job in [name, copies[1]]] == ["running"] * 2


def test_a_name_stands_for_one_running_job_alone(ckpt: Ckpt, tmp_path: Path) -> None:
    name = ckpt.new_job_name()
    started = start(ckpt, name, *UNTIL_FILE, str(tmp_path / "end"))
    assert (
        name in ckpt("run", "--detach", "--name", name, "--", "/bin/true", exit_code=62)["error"]["message"]
    )
    dumped = ckpt("dump", name)
    assert name in ckpt("restore", dumped["id"], exit_code=62)["error"]["message"]
    assert name in ckpt("rm-job", name, exit_code=62)["error"]["message"]
    assert not is_dead(started["pid"])
    ckpt("rm-job", name, "--force")
    assert is_dead(started["pid"])
    assert entry(ckpt, name) is None


@pytest.mark.parametrize("command", ["stop", "wait", "logs", "rm-job", "dump"])
def test_a_job_that_does_not_exist_is_named(command: str, ckpt: Ckpt) -> None:
    name = ckpt.new_job_name()
    assert name in ckpt(command, name, exit_code=63)["error"]["message"]


def test_a_job_that_has_ended_cannot_be_dumped(ckpt: Ckpt) -> None:
    name = ckpt.new_job_name()
    ckpt("run", "--detach", "--name", name, "--", "/bin/true")
    ckpt("wait", name)
    assert name in ckpt("dump", name, exit_code=63)["error"]["message"]
