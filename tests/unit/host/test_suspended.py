from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from ckpt.errors import Locked, ObjectCorrupt
from ckpt.host import supervision
from ckpt.host.jobs import JobRecord, JobRegistry
from ckpt.host.process_table import ProcessRef, boot_id, process_ref
from ckpt.host.suspended import HostSuspendedJobs
from ckpt.host.vanishing import vanishing_files
from ckpt.model.supervision import Standing, Supervision
from ckpt.model.suspended import Owner, Suspended
from ckpt.units import CheckpointId, JobName, Nanoseconds, Pid

WEB = JobName("web")
ENDED = ProcessRef(pid=Pid(2**22), start_ticks=1)
RECORD = Suspended(
    job=WEB,
    store="/srv/store",
    checkpoint=CheckpointId("a" * 64),
    began_ns=Nanoseconds(5),
    since_ns=Nanoseconds(7),
)


@pytest.fixture
def registry(tmp_path: Path) -> JobRegistry:
    return JobRegistry(str(tmp_path))


@pytest.fixture
def suspended(registry: JobRegistry) -> HostSuspendedJobs:
    return HostSuspendedJobs(registry)


@pytest.fixture
def fed() -> Iterator[Pid]:
    """A process with a pipe as its standard input."""
    with subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE) as process:
        yield Pid(process.pid)


def job(name: JobName, *, boot: str, command: ProcessRef = ENDED) -> JobRecord:
    return JobRecord(
        name=name,
        argv=("sleep",),
        cwd="/",
        created=Nanoseconds(3),
        boot_id=boot,
        cgroups=("/sys/fs/cgroup/nowhere",),
        root=ENDED,
        command=command,
        shim=ENDED,
        log="/dev/null",
    )


def test_what_was_written_down_is_read_again_and_forgotten(suspended: HostSuspendedJobs) -> None:
    assert suspended.find(WEB) is None
    for record in (replace(RECORD, checkpoint=None), RECORD):
        suspended.save(record)
        assert suspended.find(WEB) == record
    assert suspended.names() == (WEB,)
    for _ in range(2):
        suspended.remove(WEB)
    assert (suspended.find(WEB), suspended.names()) == (None, ())


@pytest.mark.parametrize(
    "damage",
    [b"", b"[]", b"{}", b'{"version": 2}', b"\xff"],
    ids=["empty", "a list", "lacking all", "newer", "no text"],
)
def test_a_damaged_document_is_told_with_its_path(
    suspended: HostSuspendedJobs, tmp_path: Path, damage: bytes
) -> None:
    suspended.save(RECORD)
    path = tmp_path / "suspended/web.json"
    path.write_bytes(damage)
    with pytest.raises(ObjectCorrupt) as caught:
        suspended.find(WEB)
    assert str(path) in caught.value.advice
    assert suspended.names() == (WEB,)


@pytest.mark.parametrize(
    ("field", "value"),
    [("checkpoint", "../../etc"), ("checkpoint", 5), ("time", "never"), ("since_ns", -1), ("job", "other")],
)
def test_a_document_with_a_strange_value_is_damaged(
    suspended: HostSuspendedJobs, tmp_path: Path, field: str, value: object
) -> None:
    suspended.save(RECORD)
    path = tmp_path / "suspended/web.json"
    document = json.loads(path.read_text())
    path.write_text(json.dumps(document | {field: value}))
    with pytest.raises(ObjectCorrupt):
        suspended.find(WEB)


def test_jobs_come_in_the_order_in_which_they_were_started(
    suspended: HostSuspendedJobs, tmp_path: Path
) -> None:
    for name, began in (("a", 3), ("b", 1), ("c", 2)):
        suspended.save(replace(RECORD, job=JobName(name), began_ns=Nanoseconds(began)))
    (tmp_path / "suspended/.d.json").write_text("{}")
    (tmp_path / "suspended/e.json.new").write_text("{}")
    assert suspended.names() == ("b", "c", "a")


def test_only_one_is_at_a_job(suspended: HostSuspendedJobs) -> None:
    with suspended.lock(WEB), pytest.raises(Locked), suspended.lock(WEB):
        pass


def test_of_jobs_that_a_crash_has_ended_only_those_with_a_supervisor_in_the_background_come_back(
    registry: JobRegistry, suspended: HostSuspendedJobs
) -> None:
    supervised = {"back": Standing.BACKGROUND, "front": Standing.FOREGROUND, "kept": Standing.BACKGROUND}
    for name in (*supervised, "alone", "ended"):
        registry.save(job(JobName(name), boot="another boot"))
    registry.save(job(JobName("now"), boot=boot_id()))
    for name, standing in (*supervised.items(), ("ended", Standing.BACKGROUND), ("now", Standing.BACKGROUND)):
        supervision.save(registry, JobName(name), Supervision(store="/srv/store", standing=standing))
    registry.save(replace(registry.load(JobName("ended")), stopped_by=CheckpointId("b" * 64)))
    suspended.save(replace(RECORD, job=JobName("kept")))
    assert suspended.crashed() == ("back",)


def test_what_somebody_gives_its_input_is_for_that_one_to_bring_back(
    registry: JobRegistry, suspended: HostSuspendedJobs, fed: Pid
) -> None:
    command = process_ref(fed)
    assert command is not None
    registry.save(job(WEB, boot=boot_id(), command=command))
    assert suspended.owner(WEB) is Owner.CALLER
    supervision.save(registry, WEB, Supervision(store="/srv/store", standing=Standing.BACKGROUND))
    assert suspended.owner(WEB) is Owner.CKPT


def test_files_in_memory_vanish_and_others_do_not(tmp_path: Path) -> None:
    shared = Path("/dev/shm") / f"ckpt-test-{os.getpid()}"
    with (tmp_path / "kept").open("w"), shared.open("w"):
        shared.unlink()
        assert not {str(shared), str(tmp_path / "kept")} & set(vanishing_files([Pid(os.getpid())]))


def test_what_cannot_be_read_is_told_and_keeps_no_other_job_from_being_listed(
    suspended: HostSuspendedJobs, tmp_path: Path
) -> None:
    suspended.save(RECORD)
    folder = tmp_path / "suspended"
    (folder / "deep.json").write_text("[" * 60_000)
    (folder / "folder.json").mkdir()
    assert set(suspended.names()) == {WEB, "deep", "folder"}
    for name in ("deep", "folder"):
        with pytest.raises(ObjectCorrupt):
            suspended.find(JobName(name))
