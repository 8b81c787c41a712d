"""What `ckpt run` tells of a job's checkpoints before it is too late, and of a resume that is not what was meant."""

from __future__ import annotations

import shlex
import signal
import sys

import pytest
from harness.command import Ckpt
from harness.traces import Traces
from harness.waiting import await_condition
from real.supervised import Supervised, term

pytestmark = pytest.mark.system


def test_what_cannot_be_checkpointed_is_told_soon_after_the_start(ckpt: Ckpt, traces: Traces) -> None:
    missing, errors = traces.folder / "missing", traces.folder / "ckpt.err"
    program = "import os, time; os.pipe2(os.O_DIRECT); time.sleep(60)"
    options = ["--every", "10m", "--with-files", str(missing), "--store", str(traces.folder / "no/where")]
    supervisor = ckpt.start("run", *options, "--", sys.executable, "-c", program)
    await_condition(
        lambda: errors.exists() and "a pipe of packets" in errors.read_text(), "a word of the pipe"
    )
    told = errors.read_text()
    assert f"--with-files {missing}: there is no such file" in told
    assert told.count("cannot be checkpointed as it is now") == 2
    assert term(supervisor) == 128 + signal.SIGTERM


def test_a_resume_that_is_not_what_was_meant_is_told(ckpt: Ckpt, traces: Traces) -> None:
    job = Supervised(ckpt, traces, "--resume", "--on-term", "checkpoint")
    supervisor = job.start()
    job.await_more()
    assert term(supervisor) == 75
    job.end.touch()
    elsewhere = traces.folder / "elsewhere"
    done = ckpt.run("--store", elsewhere, *job.words)
    assert done.returncode == 0
    assert (
        f"begins anew: the store {elsewhere} has no checkpoint of it; before, they went to {ckpt.store}"
        in (done.stderr)
    )
    done = ckpt.run(*job.words[:-1], "7")
    assert done.returncode == 0
    assert f"of an earlier run of {job.name}" in done.stderr
    # Of long ones the beginning is told.
    assert f"as it was started, by '{shlex.join(job.command[1:])[:100]}" in done.stderr
    assert "CMD of this call is not used" in done.stderr
    # A restore is no start: the same words again are told nothing.
    assert "begins anew" not in ckpt.run(*job.words).stderr


def test_a_store_that_cannot_be_kept_below_its_size_is_told_once(ckpt: Ckpt, traces: Traces) -> None:
    job = Supervised(ckpt, traces, "--keep", "0", "--store-max", "1", "--at-end", "keep")
    supervisor = job.start()
    job.await_checkpoint(3)
    job.ends_well(supervisor)
    assert len(job.ids()) <= 2  # the last one may have ended with the job
    assert (traces.folder / "ckpt.err").read_text().count("more than 1 B: what is left is the newest") == 1
