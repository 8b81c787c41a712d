"""What the commands of groups see: who leads, and what is told of a group that could not be suspended."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ckpt.cli import main, suspend
from ckpt.cli.group_supervising import Leadership
from ckpt.cli.side_by_side import Outcome
from ckpt.host import supervision
from ckpt.host.jobs import JobRecord, JobRegistry
from ckpt.host.process_table import ProcessRef, boot_id, process_ref
from ckpt.units import JobName, Nanoseconds, Pid

ENDED = ProcessRef(pid=Pid(2**22), start_ticks=1)


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> JobRegistry:
    monkeypatch.setenv("CKPT_STATE", str(tmp_path))
    return JobRegistry(str(tmp_path))


def file_job(registry: JobRegistry, name: str, root: ProcessRef, created: int) -> JobRecord:
    record = JobRecord(
        name=JobName(name),
        argv=("sleep",),
        cwd="/",
        created=Nanoseconds(created),
        boot_id=boot_id(),
        cgroups=("/sys/fs/cgroup/nowhere",),
        root=root,
        command=root,
        shim=root,
        log="/dev/null",
        group="shop",
    )
    registry.save(record)
    return record


def test_a_job_whose_name_looks_like_that_of_a_group_keeps_nobody_from_leading(registry: JobRegistry) -> None:
    names = ("group-shop", "shop", "leading-group-shop")
    for name in names:
        leadership = Leadership("shop")
        with supervision.lock(registry, JobName(name)):
            assert leadership.leads()
        leadership.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="ckpt suspend is for root")
@pytest.mark.parametrize("others_run", [True, False])
def test_a_group_of_which_one_has_ended_and_the_others_run_on_is_a_problem(
    registry: JobRegistry,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    *,
    others_run: bool,
) -> None:
    myself = process_ref(Pid(os.getpid()))
    assert myself is not None
    file_job(registry, "db", myself, created=3)
    file_job(registry, "web", myself, created=4)

    class Failing:
        def __init__(self, *_: object, **__: object) -> None:
            """Every job fails, and one of them has ended by then."""

        def run(self, jobs: tuple[JobName, ...]) -> Iterator[Outcome]:
            assert jobs == ("web",)
            file_job(registry, "web", ENDED, created=4)
            if not others_run:
                file_job(registry, "db", ENDED, created=3)
            error = {"slug": "group-failed", "message": "It failed.", "hint": "", "exit_code": 65}
            yield Outcome(job=JobName("web"), error=error)

    monkeypatch.setattr(suspend, "SideBySide", Failing)
    assert main.main(["suspend", "--all", "--json"]) == (3 if others_run else 0)
    problems = json.loads(capsys.readouterr().out)["problems"]
    assert [each["subject"] for each in problems] == (["group shop"] if others_run else [])
