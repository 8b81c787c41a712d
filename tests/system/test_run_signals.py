"""What signals mean to `ckpt run`: the job's own, a checkpoint now, or a last one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from harness.command import Ckpt
from harness.traces import Traces
from harness.waiting import await_condition
from real.controllers import ROOT
from real.supervised import COUNTING, Supervised, term

from ckpt.host.jobs import JobRegistry
from ckpt.host.process_table import stat_of
from ckpt.units import JobName

pytestmark = pytest.mark.system


def test_sigterm_takes_a_last_checkpoint_and_the_same_command_goes_on(ckpt: Ckpt, traces: Traces) -> None:
    job = Supervised(ckpt, traces, "--resume", "--on-term", "checkpoint")
    for _ in range(2):
        supervisor = job.start()
        job.await_more()
        assert term(supervisor) == 75
        before = job.written()
        assert job.job()["state"] == "stopped"
        assert job.job()["latest"] == job.ids()[-1]
    told = (traces.folder / "ckpt.err").read_text()
    assert told.count("run the same command again to go on") == 2
    supervisor = job.start()
    job.ends_well(supervisor)
    assert job.written()[: len(before)] == before
    assert (traces.folder / "ckpt.out").read_text().split() == list(map(str, job.written()))


def test_a_last_checkpoint_that_takes_too_long_is_given_up_and_the_job_gets_the_signal(
    ckpt: Ckpt, traces: Traces
) -> None:
    job = Supervised(ckpt, traces, "--on-term", "checkpoint", "--grace", "1ms")
    supervisor = job.start()
    job.await_more()
    assert term(supervisor) == 128 + signal.SIGTERM
    assert "without a last checkpoint" in (traces.folder / "ckpt.err").read_text()


def test_without_on_term_checkpoint_sigterm_is_the_jobs(ckpt: Ckpt, traces: Traces) -> None:
    job = Supervised(ckpt, traces)
    supervisor = job.start()
    job.await_checkpoint()
    assert term(supervisor) == 128 + signal.SIGTERM
    assert job.ids(), "what a signal ended keeps its checkpoints"


def test_sigusr1_asks_for_a_checkpoint_now(ckpt: Ckpt, traces: Traces) -> None:
    job = Supervised(ckpt, traces, "--every", "1h")
    supervisor = job.start()
    job.await_more()
    supervisor.send_signal(signal.SIGUSR1)
    job.await_checkpoint()
    assert ckpt("show", job.name)["message"] == "checkpoint asked for by a signal"
    assert term(supervisor) == 128 + signal.SIGTERM


def test_sigterm_while_the_job_is_being_begun_loses_nothing(ckpt: Ckpt, traces: Traces) -> None:
    job = Supervised(ckpt, traces, "--resume", "--on-term", "checkpoint")
    supervisor = job.start()
    job.await_more()
    assert term(supervisor) == 75
    written, kept = job.written(), job.ids()
    # A controller that sends itself a signal, where the restore is under way.
    again = ckpt.start(*job.words, CKPT_FAILPOINT="fetched:SIGTERM")
    assert again.wait(timeout=60) == 75
    assert (job.written(), job.ids()) == (written, kept)
    job.ends_well(job.start())


#: Ends with the lock of a job's supervisor held by its child, as one that was killed while it took a checkpoint.
KILLED_SUPERVISOR = """
import os, sys, time
from ckpt.host.locks import exclusive
with exclusive(sys.argv[1], [sys.argv[2]], subject="a test"):
    child = os.fork()
    if child:
        print(child, flush=True)
        os._exit(0)
    os.close(1)
    time.sleep(600)
"""


def test_sigterm_while_the_checkpoint_of_a_killed_supervisor_is_waited_for_loses_nothing(
    ckpt: Ckpt, traces: Traces
) -> None:
    job = Supervised(ckpt, traces, "--resume", "--on-term", "checkpoint")
    killed = [sys.executable, "-c", KILLED_SUPERVISOR, f"{ckpt.state}/locks", f"supervisor-{job.name}"]
    child = int(subprocess.run(killed, check=True, stdout=subprocess.PIPE, cwd=ROOT).stdout)
    try:
        waiting = job.start()
        wchan = Path(f"/proc/{waiting.pid}/wchan")
        await_condition(lambda: wchan.read_text() == "hrtimer_nanosleep", "it to wait for the lock")
        assert term(waiting) == 75
    finally:
        os.kill(child, signal.SIGKILL)
    job.ends_well(job.start())


def test_a_job_that_somebody_else_ended_with_a_checkpoint_is_to_be_run_again(
    ckpt: Ckpt, traces: Traces
) -> None:
    job = Supervised(ckpt, traces, "--resume")
    supervisor = job.start()
    job.await_more()
    dumped = job.dump("--stop", "--tag", "mine")
    assert supervisor.wait(timeout=60) == 75
    again = job.start()
    job.ends_well(again)
    assert job.ids() == [dumped]


def test_a_reader_of_the_output_that_does_not_read_keeps_no_signal_away(ckpt: Ckpt, traces: Traces) -> None:
    words = ["run", "--name", ckpt.new_job_name(), "--", "/bin/sh", "-c", "while :; do echo 0123456789; done"]
    with subprocess.Popen(
        ckpt.command_line(*words),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        env=ckpt.environ({}),
        cwd=traces.folder,
    ) as process:
        log = ckpt.state / "jobs" / words[2] / "log"
        await_condition(lambda: log.exists() and log.stat().st_size > 1 << 18, "more than a pipe holds")
        process.send_signal(signal.SIGTERM)
        assert process.stdout is not None
        # All that it wrote comes, and nothing of it twice.
        size = len(process.stdout.read())
        assert process.wait(timeout=60) == 128 + signal.SIGTERM
    assert size == log.stat().st_size


def test_a_reader_of_the_output_that_is_gone_ends_the_job_as_a_pipe_would(ckpt: Ckpt, traces: Traces) -> None:
    words = ckpt.command_line("run", "--name", ckpt.new_job_name(), "--", "yes")
    shell = subprocess.run(
        ["/bin/bash", "-c", '"$@" | head -n 2; exit "${PIPESTATUS[0]}"', "bash", *words],
        check=False,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env=ckpt.environ({}),
        timeout=30,
    )
    assert shell.stdout == b"y\ny\n"
    assert shell.returncode == 128 + signal.SIGPIPE


@pytest.mark.parametrize(
    ("words", "needed"),
    [
        (["--resume"], "--name"),
        (["--keep", "2"], "--every"),
        (["--with-files", "x"], "--every"),
        (["--tcp-established"], "--every"),
        (["--mtbf", "1h", "--every", "1s"], "--every auto"),
        (["--max-frozen", "2%", "--name", "x", "--resume"], "--every"),
        (["--grace", "1s", "--every", "1s"], "--on-term checkpoint"),
        (["--every", "1s", "--max-frozen", "0%"], "share"),
        (["--every", "soon"], "soon"),
        (["--every", "0s"], "zero"),
    ],
)
def test_options_that_do_not_fit_together_are_refused(ckpt: Ckpt, words: list[str], needed: str) -> None:
    done = ckpt.run("run", *words, "--", "true")
    assert done.returncode == 2
    assert needed in done.stderr


@pytest.mark.parametrize("options", [(), ("--every", "1h")], ids=["bare", "supervised"])
def test_ctrl_z_stops_the_job_and_its_ckpt_until_they_go_on(
    options: tuple[str, ...], ckpt: Ckpt, tmp_path: Path
) -> None:
    end = tmp_path / "end"
    job = JobName(ckpt.new_job_name())
    command = ckpt.command_line("run", "--name", job, *options, "--", *COUNTING, end, "0")
    # In the background of a session with a leader, as a shell starts it: an orphaned group does not stop.
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env=ckpt.environ({}), process_group=0
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"1\n"
        pid = JobRegistry(str(ckpt.state)).load(job).command.pid
        process.send_signal(signal.SIGTSTP)
        assert os.waitid(os.P_PID, process.pid, os.WSTOPPED) is not None
        await_condition(lambda: state_of(pid) == "T", "the job to stop")
        process.send_signal(signal.SIGCONT)
        await_condition(lambda: state_of(pid) != "T", "the job to go on")
        end.touch()
        process.stdout.read()
        assert process.wait(20) == 0


def state_of(pid: int) -> str:
    stat = stat_of(pid)
    assert stat is not None
    return stat.state
