from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ckpt.errors import BadName, Locked, NoSuchTarget, ObjectCorrupt, OsRefused, WrongState
from ckpt.host import shim
from ckpt.host.jobs import JobRecord, JobRegistry, JobState, check_name, memory_of, state_directory
from ckpt.host.migration_records import SourceRecord
from ckpt.host.migrations import Migrations
from ckpt.host.process_table import ProcessRef, boot_id, process_ref
from ckpt.model.migration import MigrationId, SourceState
from ckpt.model.origin import Origin
from ckpt.units import CheckpointId, JobName, Nanoseconds, Pid

JOB = JobName("one")
GONE = ProcessRef(pid=Pid(2**22), start_ticks=1)


SOURCE = SourceRecord(
    id=MigrationId("00112233445566ff"),
    state=SourceState.PREPARING,
    job=JOB,
    subject=f"job {JOB}",
    pid=Pid(12),
    cgroup="",
    host="root@there",
    identity="",
    known_hosts="",
    remote_ckpt="",
    store="",
    boot_id="boot",
    controller=ProcessRef(pid=Pid(7), start_ticks=9),
    began_ns=Nanoseconds(5),
)


@pytest.fixture
def registry(tmp_path: Path) -> JobRegistry:
    return JobRegistry(str(tmp_path))


@pytest.fixture
def living() -> Iterator[ProcessRef]:
    process = subprocess.Popen(
        [sys.executable, "-c", "print(flush=True); input()"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout
    process.stdout.readline()
    found = process_ref(process.pid)
    assert found
    try:
        yield found
    finally:
        process.communicate(b"\n")


def record(root: ProcessRef = GONE, **changes: Any) -> JobRecord:
    wanted = JobRecord(
        name=JOB,
        argv=("sleep", "1 0"),
        cwd="/tmp",
        created=Nanoseconds(5),
        boot_id=boot_id(),
        cgroups=("/sys/fs/cgroup/does-not-exist",),
        root=root,
        command=root,
        shim=root,
        log="/dev/null",
    )
    return replace(wanted, **changes)


def write_exit(registry: JobRegistry, code: int) -> None:
    # As the shim does it, whose pid is ours here.
    shim.write_exit(registry.exit_path(JOB), 4242, code << 8)


def test_what_is_saved_is_loaded(registry: JobRegistry) -> None:
    saved = record(restored_from=CheckpointId("c0ffee"))
    registry.save(saved)
    assert registry.load(JOB) == saved
    assert registry.names() == (JOB,)
    assert registry.cgroup_of(JOB) == "/sys/fs/cgroup/does-not-exist"


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "-a", ".a", "a b", "ä", "a\n", "x" * 65])
def test_a_name_that_would_be_a_strange_path_is_refused(registry: JobRegistry, name: str) -> None:
    with pytest.raises(BadName):
        registry.load(JobName(name))


@pytest.mark.parametrize("name", ["a", "7", "a.b-c_d", "x" * 64])
def test_an_ordinary_name_is_taken(name: str) -> None:
    assert check_name(name) == name


def test_an_unknown_job_is_no_target(registry: JobRegistry) -> None:
    with pytest.raises(NoSuchTarget):
        registry.look(JOB)
    with pytest.raises(NoSuchTarget):
        registry.remove(JOB)
    assert registry.cgroup_of(JOB) is None
    assert registry.names() == ()
    registry.refuse_running(JOB)


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"version": 2}', '{"version": 1}', '{"version": 1, "argv": 3}']
)
def test_a_damaged_record_is_named_and_does_not_hide_the_other_jobs(registry: JobRegistry, text: str) -> None:
    registry.save(record())
    registry.save(record(name=JobName("two")))
    Path(registry.directory(JOB), "job.json").write_text(text)
    with pytest.raises(ObjectCorrupt, match="one"):
        registry.load(JOB)
    assert [view.name for view in registry.list()] == ["two"]
    registry.remove(JOB)
    assert registry.names() == ("two",)


def test_a_living_process_makes_the_job_run(registry: JobRegistry, living: ProcessRef) -> None:
    registry.save(record(living))
    assert registry.look(JOB).state is JobState.RUNNING
    with pytest.raises(WrongState, match="running"):
        registry.remove(JOB)
    with pytest.raises(WrongState, match=str(living.pid)):
        registry.refuse_running(JOB)


def test_a_pid_with_another_start_time_is_somebody_else(registry: JobRegistry, living: ProcessRef) -> None:
    registry.save(record(replace(living, start_ticks=living.start_ticks + 1)))
    assert registry.look(JOB).state is JobState.EXITED


def test_no_pid_is_believed_after_a_reboot(registry: JobRegistry, living: ProcessRef) -> None:
    registry.save(record(living, boot_id="another"))
    assert registry.look(JOB).state is JobState.EXITED


def test_a_job_that_was_ended_on_purpose_is_stopped_or_migrated(registry: JobRegistry) -> None:
    registry.save(record())
    assert registry.look(JOB).state is JobState.EXITED
    registry.mark_stopped(JOB, CheckpointId("c0ffee"))
    assert registry.look(JOB).state is JobState.STOPPED
    registry.mark_migrated(JOB, "elsewhere")
    assert registry.look(JOB).state is JobState.MIGRATED


def test_a_job_that_was_handed_over_is_waited_for_in_vain(registry: JobRegistry, living: ProcessRef) -> None:
    registry.save(record())
    assert registry.moved_to(JOB) == ""
    # From the commit on, before it is marked: a migration is over only then.
    migrations = Migrations(registry.state)
    source = SOURCE
    migrations.begin(source)
    for state in (SourceState.TRANSFERRING, SourceState.FROZEN):
        migrations.save(source := replace(source, state=state))
        assert registry.moved_to(JOB) == ""
    migrations.save(replace(source, state=SourceState.COMMITTED))
    assert registry.moved_to(JOB) == "root@there"
    with pytest.raises(WrongState, match="moved to root@there"):
        registry.wait(JOB)
    registry.save(record(living))
    assert registry.moved_to(JOB) == ""


def test_a_job_is_found_by_its_process(registry: JobRegistry, living: ProcessRef) -> None:
    registry.save(record(living))
    assert registry.with_root((Pid(1), living.pid)) == JOB
    assert registry.with_root((Pid(1),)) is None
    registry.save(record(replace(living, start_ticks=living.start_ticks + 1)))
    assert registry.with_root((living.pid,)) is None


def test_a_mark_does_not_hide_that_the_job_runs(registry: JobRegistry, living: ProcessRef) -> None:
    registry.save(record(living))
    registry.mark_stopped(JOB, CheckpointId("c0ffee"))
    assert registry.look(JOB).state is JobState.RUNNING


def test_the_exit_is_known_and_that_of_an_earlier_life_is_not_taken_for_it(registry: JobRegistry) -> None:
    registry.save(record(shim=ProcessRef(pid=Pid(os.getpid()), start_ticks=1)))
    write_exit(registry, 7)
    ended = registry.look(JOB).exit
    assert ended
    assert ended.shell_code == 7
    registry.save(record())
    assert registry.look(JOB).exit is None


def test_waiting_returns_when_the_exit_is_written(registry: JobRegistry, living: ProcessRef) -> None:
    # This process plays the shim; the living one is the job.
    ours = process_ref(os.getpid())
    assert ours
    registry.save(record(living, shim=ours))
    assert registry.wait(JOB, 0.01) is None
    timer = threading.Timer(0.05, write_exit, (registry, 3))
    timer.start()
    ended = registry.wait(JOB, 20)
    timer.join()
    assert ended
    assert ended.code == 3


def test_waiting_for_an_end_that_nobody_saw_says_so(registry: JobRegistry) -> None:
    registry.save(record())
    with pytest.raises(OsRefused, match="nobody saw it"):
        registry.wait(JOB, 20)


def test_a_lock_keeps_others_away_and_names_its_holder(registry: JobRegistry) -> None:
    with registry.lock(JOB), pytest.raises(Locked, match=str(os.getpid())), registry.lock(JOB):
        pass
    with registry.lock(JOB):
        pass


def test_memory_without_a_controller_is_the_sum_of_the_processes() -> None:
    assert memory_of(("/does/not/exist",), (Pid(os.getpid()),)) > 1 << 20
    assert memory_of(("/does/not/exist",), ()) == 0


def test_memory_is_the_cgroups_where_it_has_an_account(tmp_path: Path) -> None:
    (tmp_path / "memory.current").write_text("4096\n")
    assert memory_of((str(tmp_path),), (Pid(os.getpid()),)) == 4096


def test_a_restored_workload_is_filed_by_what_it_is(registry: JobRegistry, living: ProcessRef) -> None:
    registry.adopt(
        JOB,
        cgroup="/sys/fs/cgroup/x",
        root=living.pid,
        shim=GONE,
        origin=Origin(checkpoint=CheckpointId("c0ffee")),
        log="/l",
    )
    loaded = registry.load(JOB)
    assert loaded.argv[:2] == (sys.executable, "-c")
    assert loaded.root == loaded.command == living
    assert loaded.cwd == os.getcwd()
    assert loaded.restored_from == "c0ffee"


def test_a_command_line_that_came_later_than_its_job_is_shown(
    registry: JobRegistry, living: ProcessRef
) -> None:
    registry.save(record(living, argv=("",)))
    assert registry.look(JOB).record.argv[:2] == (sys.executable, "-c")


def test_the_record_is_whole_or_the_former_one(registry: JobRegistry) -> None:
    registry.save(record())
    registry.save(record(cwd="/"))
    directory = Path(registry.directory(JOB))
    assert sorted(path.name for path in directory.iterdir()) == ["job.json"]
    assert json.loads((directory / "job.json").read_text())["cwd"] == "/"


def test_the_state_directory_can_be_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CKPT_STATE", "/somewhere")
    assert state_directory() == "/somewhere"
    monkeypatch.delenv("CKPT_STATE")
    assert state_directory() == "/var/lib/ckpt"
