from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ckpt.errors import Locked, ObjectCorrupt
from ckpt.host import supervision as kept
from ckpt.host.jobs import JobRegistry
from ckpt.model.checkpoint import ClosingOptions, DumpOptions
from ckpt.model.supervision import AtEnd, Interval, OnTerm, Supervision
from ckpt.units import SECOND, ByteCount, JobName, Nanoseconds

JOB = JobName("one")
FULL = Supervision(
    store="/srv/store",
    log="/var/log/one",
    interval=Interval(auto=True, mtbf_ns=Nanoseconds(7 * SECOND), max_frozen=0.25),
    keep=7,
    on_term=OnTerm.CHECKPOINT,
    grace_ns=Nanoseconds(9 * SECOND),
    at_end=AtEnd.DELETE,
    with_files=("/srv/data", "/srv/ünï"),
    store_max=ByteCount(1 << 31),
    group="g",
    options=ClosingOptions(ghost_limit_bytes=ByteCount(5), shell_job=True),
)


@pytest.fixture
def registry(tmp_path: Path) -> JobRegistry:
    return JobRegistry(str(tmp_path))


def document(registry: JobRegistry) -> Path:
    return Path(registry.directory(JOB), kept.DOCUMENT)


@pytest.mark.parametrize(
    "supervision", [FULL, Supervision(store="/s"), replace(FULL, options=DumpOptions(tcp_established=True))]
)
def test_what_is_saved_is_loaded(registry: JobRegistry, supervision: Supervision) -> None:
    assert kept.load(registry, JOB) is None
    kept.save(registry, JOB, supervision)
    assert kept.load(registry, JOB) == supervision
    assert kept.is_supervised(registry, JOB)
    kept.remove(registry, JOB)
    kept.remove(registry, JOB)
    assert not kept.is_supervised(registry, JOB)


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"keep": -1},
        {"keep": True},
        {"store": 5},
        {"more": 1},
        {"on_term": "die"},
        {"grace_ns": 2**70},
        {"interval": {"every_ns": 0}},
        {"interval": 3},
        {"options": {"tcp_close": 1}},
        {"options": None},
        {"with_files": [3]},
        {"with_files": None},
    ],
)
def test_a_damaged_document_is_named_and_not_acted_on(registry: JobRegistry, change: dict[str, Any]) -> None:
    kept.save(registry, JOB, FULL)
    path = document(registry)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ObjectCorrupt, match="supervision of job one") as caught:
        kept.load(registry, JOB)
    assert str(path) in caught.value.advice


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"version": 1}', '{"a":' * 100_000])
def test_what_is_no_document_is_damaged(registry: JobRegistry, text: str) -> None:
    kept.save(registry, JOB, FULL)
    document(registry).write_text(text)
    with pytest.raises(ObjectCorrupt):
        kept.load(registry, JOB)


def test_a_job_has_one_supervisor(registry: JobRegistry) -> None:
    assert kept.supervisor_of(registry, JOB) is None
    with kept.lock(registry, JOB):
        assert kept.supervisor_of(registry, JOB) == os.getpid()
        with pytest.raises(Locked, match=str(os.getpid())), kept.lock(registry, JOB):
            pass
    assert kept.supervisor_of(registry, JOB) is None


def test_a_stranger_who_has_the_number_of_a_dead_supervisor_is_none(registry: JobRegistry) -> None:
    locks = Path(registry.state, "locks")
    locks.mkdir()
    (locks / f"supervisor-{JOB}").write_text(str(os.getpid()))
    assert kept.supervisor_of(registry, JOB) is None
    # Not even one who has the file open.
    with open(locks / f"supervisor-{JOB}", "rb"):
        assert kept.supervisor_of(registry, JOB) is None
    with kept.lock(registry, JOB):
        assert kept.supervisor_of(registry, JOB) == os.getpid()


def test_a_checkpoint_that_a_dead_supervisor_left_under_way_is_waited_for(registry: JobRegistry) -> None:
    program = """if True:
        import os, sys, time
        from ckpt.host import supervision
        from ckpt.host.jobs import JobRegistry
        with supervision.lock(JobRegistry(sys.argv[1]), "one"):
            if os.fork() == 0:
                print(flush=True)
                sys.stdin.read()
                os._exit(0)
            os.kill(os.getpid(), 9)
    """
    with subprocess.Popen(
        [sys.executable, "-c", program, registry.state], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as supervisor:
        assert supervisor.stdout is not None
        assert supervisor.stdin is not None
        supervisor.stdout.readline()
        supervisor.wait()
        with pytest.raises(Locked), kept.lock(registry, JOB, patience_s=0.1):
            pass
        supervisor.stdin.close()
        with kept.lock(registry, JOB, patience_s=20):
            pass


def test_what_is_saved_of_a_job_are_the_files_that_are_there(registry: JobRegistry, tmp_path: Path) -> None:
    directory = Path(registry.prepare(JOB))
    assert kept.appended_files(registry, JOB, "") == ()
    for name in ("log", "log.stderr", "stdin.position", "job.json"):
        (directory / name).touch()
    logs = tuple(f"{directory}/{name}" for name in ("log", "log.stderr"))
    position = f"{directory}/stdin.position"
    assert kept.appended_files(registry, JOB, "") == logs
    assert kept.appended_files(registry, JOB, "", notes_position=True) == (*logs, position)
    assert kept.appended_files(registry, JOB, "/dev/null", notes_position=True) == (position,)
