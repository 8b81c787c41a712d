"""Several jobs at once, each in a process of its own."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from ckpt.cli.side_by_side import SideBySide
from ckpt.errors import Locked, NoSuchTarget
from ckpt.units import MILLISECOND, SECOND, JobName, Nanoseconds

JOBS = tuple(map(JobName, ("one", "two", "three")))


def test_each_job_has_its_outcome_and_one_that_is_locked_is_tried_again(tmp_path: Path) -> None:
    def act(job: JobName) -> dict[str, Any]:
        if job == "two":
            raise NoSuchTarget(kind="job", name=job)
        if job == "three" and not (tmp_path / job).exists():
            (tmp_path / job).touch()
            raise Locked(subject=job, holder="process 1")
        return {"job": job, "pid": os.getpid()}

    outcomes = {
        each.job: each for each in SideBySide(act, at_once=2, timeout=Nanoseconds(20 * SECOND)).run(JOBS)
    }
    assert set(outcomes) == set(JOBS)
    assert outcomes[JOBS[1]].error is not None
    assert outcomes[JOBS[1]].error["slug"] == "no-such-target"
    pids = {outcomes[job].document["pid"] for job in (JOBS[0], JOBS[2]) if outcomes[job].document}  # type: ignore[index]
    assert len(pids - {os.getpid()}) == 2


def test_what_is_not_done_in_time_has_no_outcome_and_leaves_no_process(tmp_path: Path) -> None:
    def act(job: JobName) -> dict[str, Any]:
        (tmp_path / job).write_text(str(os.getpid()))
        time.sleep(60)
        return {}

    under_way = SideBySide(act, at_once=2, timeout=Nanoseconds(300 * MILLISECOND))
    outcomes = list(under_way.run(JOBS))
    assert {each.job for each in outcomes} == set(JOBS)
    assert not any(each.document for each in outcomes)
    for begun in tmp_path.iterdir():
        assert not os.path.exists(f"/proc/{begun.read_text()}")


def test_a_child_that_dies_is_told() -> None:
    def act(job: JobName) -> dict[str, Any]:
        os.kill(os.getpid(), 9)
        return {}

    (outcome,) = SideBySide(act, at_once=1, timeout=Nanoseconds(20 * SECOND)).run(JOBS[:1])
    assert outcome.error is not None
    assert "without a word" in outcome.error["message"]
