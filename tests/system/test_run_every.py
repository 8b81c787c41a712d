"""`ckpt run --every`: checkpoints while the job runs, and going on after whatever happened."""

from __future__ import annotations

import itertools
import signal
import sys
from datetime import datetime

import pytest
from harness.command import Ckpt
from harness.processes import kill
from harness.traces import Traces
from harness.waiting import await_condition
from real.supervised import Supervised

pytestmark = pytest.mark.system


def test_checkpoints_come_while_the_job_runs_and_the_newest_stay_until_it_has_ended_well(
    ckpt: Ckpt, traces: Traces
) -> None:
    job = Supervised(ckpt, traces, "--keep", "2")
    supervisor = job.start()
    job.await_checkpoint()
    ckpt("tag", f"{job.name}@latest", "mine")
    first = ckpt("show", "mine")["id"]
    other = job.dump()
    job.await_checkpoint(3)
    # Neither what has a tag, nor what others took, counts or goes; one more is there while it is being kept.
    kept = job.ids()
    assert {first, other} < set(kept)
    assert len(kept) in {4, 5}
    assert job.job()["supervisor"] == supervisor.pid
    job.ends_well(supervisor)
    assert job.ids() == [first, other]
    assert (traces.folder / "ckpt.out").read_text().split() == list(map(str, job.written()))
    assert (traces.folder / "ckpt.err").read_text() == ""
    assert sorted(each.name for each in job.directory.iterdir()) == [
        "exit.json",
        "job.json",
        "log",
        "log.stderr",
        "shim.log",
    ]


@pytest.mark.parametrize("at_end", ["success", "delete"])
def test_a_job_that_fails_keeps_its_checkpoints_unless_they_are_to_go(
    ckpt: Ckpt, traces: Traces, at_end: str
) -> None:
    job = Supervised(ckpt, traces, "--at-end", at_end, code=3)
    supervisor = job.start()
    job.await_checkpoint()
    job.end.touch()
    assert supervisor.wait(timeout=60) == 3
    assert bool(job.ids()) == (at_end == "success")


def test_the_interval_gets_longer_where_the_share_of_time_frozen_is_small(ckpt: Ckpt, traces: Traces) -> None:
    job = Supervised(ckpt, traces, "--max-frozen", "4%", "--keep", "0", "--at-end", "keep")
    supervisor = job.start()
    job.await_checkpoint(3)
    job.ends_well(supervisor)
    taken = job.checkpoints()
    began = [datetime.fromisoformat(each["created"]) for each in taken]
    for each, (before, after) in zip(taken, itertools.pairwise(began), strict=False):
        pause_ms = (after - before).total_seconds() * 1000
        assert pause_ms >= each["frozen_ms"] / 0.04


def test_what_was_killed_with_everything_goes_on_from_the_newest_checkpoint(
    ckpt: Ckpt, traces: Traces
) -> None:
    job = Supervised(ckpt, traces, "--resume")
    supervisor = job.start()
    for _ in range(2):
        job.await_checkpoint()
        job.await_more()
        job.kill_all(supervisor)
        supervisor = job.start()
        job.await_more()
    job.ends_well(supervisor)
    assert not job.ids()
    told = (traces.folder / "ckpt.err").read_text()
    assert told.count(f"ckpt: {job.name} goes on from ") == 2


def test_a_damaged_checkpoint_is_told_and_the_one_before_it_taken(ckpt: Ckpt, traces: Traces) -> None:
    job = Supervised(ckpt, traces, "--resume", "--keep", "0")
    supervisor = job.start()
    job.await_checkpoint(2)
    job.kill_all(supervisor)
    older, *newer = job.ids()
    for each in newer:
        manifest = ckpt.store / "manifests" / each
        manifest.write_bytes(manifest.read_bytes()[:-1])
    job.ends_well(job.start())
    told = (traces.folder / "ckpt.err").read_text()
    assert "not whole" in told
    assert f"goes on from {older[:12]}" in told


def test_a_job_whose_supervisor_alone_was_killed_is_taken_over(ckpt: Ckpt, traces: Traces) -> None:
    job = Supervised(ckpt, traces, "--resume")
    supervisor = job.start()
    job.await_checkpoint()
    supervisor.kill()
    supervisor.wait()
    pid = job.job()["pid"]
    again = job.start()
    job.await_checkpoint(2)
    assert job.job()["pid"] == pid
    assert job.job()["supervisor"] == again.pid
    job.ends_well(again)
    assert "is supervised from now on" in (traces.folder / "ckpt.err").read_text()


def test_a_job_that_ended_while_nobody_supervised_it_is_not_begun_again(ckpt: Ckpt, traces: Traces) -> None:
    job = Supervised(ckpt, traces, "--resume", code=5)
    supervisor = job.start()
    job.await_checkpoint()
    supervisor.kill()
    supervisor.wait()
    job.end.touch()
    await_condition(lambda: job.job()["state"] == "exited", "its end")
    done = job.run()
    assert done.returncode == 5
    assert "ended with code 5 while nobody supervised it" in done.stderr
    # That was told: whoever calls once more wants it to go on from before its failure.
    assert "goes on from" in job.run().stderr


def test_what_cannot_be_checkpointed_runs_on_and_is_told_once(ckpt: Ckpt) -> None:
    # A pipe in packet mode is nothing that CRIU dumps.
    program = "import os, time; os.pipe2(os.O_DIRECT); time.sleep(4.5)"
    done = ckpt.run("run", "--every", "100ms", "--", sys.executable, "-c", program)
    assert done.returncode == 0
    assert done.stderr.count("periodic checkpoint of python") == 1
    assert "packet" in done.stderr


def test_two_supervisors_of_one_job_are_refused(ckpt: Ckpt, traces: Traces) -> None:
    job = Supervised(ckpt, traces, "--resume")
    supervisor = job.start()
    job.await_checkpoint()
    done = job.run()
    assert done.returncode == 61
    assert str(supervisor.pid) in done.stderr
    kill(job.job()["pids"])
    assert supervisor.wait(timeout=60) == 128 + signal.SIGKILL


def test_a_detached_job_has_a_supervisor_behind_it(ckpt: Ckpt, traces: Traces) -> None:
    job = Supervised(ckpt, traces, "--resume")
    command = ["run", "--detach", *job.options, *job.command]
    started = ckpt(*command)
    assert started["restored_from"] is None
    job.await_checkpoint()
    behind = job.job()["supervisor"]
    ckpt(*command, exit_code=61)
    kill([behind, *job.job()["pids"]])
    again = ckpt(*command)
    assert again["restored_from"] is not None
    assert job.job()["supervisor"] not in (None, behind)
    job.end.touch()
    ckpt("wait", job.name)
    job.has_counted()
    await_condition(lambda: not job.ids(), "its checkpoints to be removed")
    told = (job.directory / "supervisor.log").read_text()
    assert f"supervising {job.name}" in told
    assert "frozen" in told
