"""A suspended job that two want back at once: 'ckpt resume' at the boot, and the 'ckpt run --resume' of a user's unit."""

from __future__ import annotations

import pytest
from harness.command import Ckpt
from harness.traces import Traces
from real.supervised import Supervised

pytestmark = pytest.mark.system

ROUNDS = 2


def test_a_job_that_two_want_back_runs_once_and_is_supervised(ckpt: Ckpt, traces: Traces) -> None:
    job = Supervised(ckpt, traces, "--every", "1h", "--resume", "--detach")
    assert job.run().returncode == 0
    for _ in range(ROUNDS):
        job.await_more(3)
        ckpt("suspend", job.name)
        both = [ckpt.start("resume", "--all"), job.start()]
        codes = [each.wait(60) for each in both]
        assert codes == [0, 0], (traces.folder / "ckpt.err").read_text()
        assert job.job()["state"] == "running"
        assert job.job()["supervisor"]
        job.has_counted()
    ckpt("stop", job.name)
