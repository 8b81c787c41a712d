from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ckpt.host.feeding import (
    Mark,
    is_cut_short,
    is_position_exact,
    ourselves,
    remove_mark,
    write_mark,
)
from ckpt.host.jobs import JobRecord, JobRegistry
from ckpt.host.process_table import ProcessRef, boot_id
from ckpt.host.supervision import appended_files
from ckpt.units import JobName, Nanoseconds, Pid

JOB = JobName("one")
GONE = ProcessRef(pid=ourselves().pid, start_ticks=ourselves().start_ticks - 1)
"""Somebody who had our number before us."""


@pytest.fixture
def registry(tmp_path: Path) -> JobRegistry:
    return JobRegistry(str(tmp_path))


def fed_by(registry: JobRegistry, feeder: ProcessRef | None) -> JobRecord:
    record = JobRecord(
        name=JOB,
        argv=("sort",),
        cwd="/",
        created=Nanoseconds(5),
        boot_id=boot_id(),
        cgroups=("/sys/fs/cgroup/ckpt/one",),
        root=GONE,
        command=GONE,
        shim=ProcessRef(pid=Pid(1), start_ticks=0),
        log="",
        feeder=feeder,
    )
    registry.save(record)
    return record


def test_input_is_cut_short_when_who_feeds_it_goes_before_the_end_was_written_down(
    registry: JobRegistry,
) -> None:
    assert not is_cut_short(registry, fed_by(registry, None))
    assert not is_cut_short(registry, fed_by(registry, ourselves()))
    record = fed_by(registry, GONE)
    assert registry.load(JOB) == record
    assert is_cut_short(registry, record)
    write_mark(registry, record, Mark.COMPLETE)
    assert not is_cut_short(registry, record)
    assert is_cut_short(registry, replace(record, created=Nanoseconds(6))), "the mark is of another life"


def test_who_fed_a_job_in_another_boot_is_gone_though_the_number_is_ours(registry: JobRegistry) -> None:
    assert is_cut_short(registry, replace(fed_by(registry, ourselves()), boot_id="another"))


def test_another_ckpt_saves_the_position_while_nothing_moves_and_when_all_has_moved(
    registry: JobRegistry,
) -> None:
    record = fed_by(registry, ourselves())
    position = Path(registry.directory(JOB), "stdin.position")
    position.touch()
    write_mark(registry, record, Mark.UNMOVED)
    assert appended_files(registry, JOB, "/dev/null") == (str(position),)
    remove_mark(registry, record, Mark.UNMOVED)
    remove_mark(registry, record, Mark.UNMOVED)
    assert not is_position_exact(registry, record)
    assert appended_files(registry, JOB, "/dev/null") == ()
    write_mark(registry, record, Mark.COMPLETE)
    assert appended_files(registry, JOB, "/dev/null") == (str(position),)
