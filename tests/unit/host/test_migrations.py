"""The records of migrations: whole, durable, and never half believed."""

from __future__ import annotations

import errno
import json
import os
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from ckpt.errors import Locked, NoSuchTarget, ObjectCorrupt, OsRefused, WrongState
from ckpt.host import migration_records
from ckpt.host.migration_records import SourceRecord, TargetRecord, state_in
from ckpt.host.migrations import Migrations, check_id, new_id
from ckpt.host.process_table import ProcessRef
from ckpt.model.migration import MigrationId, SourceState, TargetState
from ckpt.units import Nanoseconds, Pid

ID = MigrationId("00112233445566ff")
PROCESS = ProcessRef(pid=Pid(7), start_ticks=9)

SOURCE = SourceRecord(
    id=ID,
    state=SourceState.PREPARING,
    job="web",
    subject="job web",
    pid=Pid(12),
    cgroup="/sys/fs/cgroup/ckpt/web",
    host="root@target:22",
    identity="/root/.ssh/id",
    known_hosts="",
    remote_ckpt="ckpt",
    store="/var/lib/ckpt/store",
    boot_id="boot",
    controller=PROCESS,
    began_ns=Nanoseconds(5),
)
TARGET = TargetRecord(
    id=ID,
    state=TargetState.RECEIVING,
    job="wéb",
    source_host="source",
    boot_id="boot",
    agent=PROCESS,
    began_ns=Nanoseconds(5),
    time="suspend",
    inodes="keep",
    pids="same",
    cgroup="",
)


@pytest.fixture
def migrations(tmp_path: Path) -> Migrations:
    return Migrations(str(tmp_path / "state"))


def source_path(migrations: Migrations) -> Path:
    return Path(migrations.directory(ID), "source.json")


def test_what_is_written_is_read(migrations: Migrations) -> None:
    assert (migrations.read_source(ID), migrations.ids(), migrations.sources()) == (None, (), ())
    migrations.begin(SOURCE)
    later = replace(SOURCE, state=SourceState.TRANSFERRING, attempt=2, options="{}")
    migrations.save(later)
    assert migrations.read_source(ID) == later
    assert migrations.read_target(ID) is None
    assert (migrations.sources(), migrations.targets()) == ((later,), ())
    assert os.listdir(migrations.directory(ID)) == ["source.json"]
    other = replace(TARGET, id=new_id())
    migrations.begin(other)
    assert migrations.targets() == (other,)


def test_a_record_is_on_the_disk_under_its_name_before_save_returns(
    migrations: Migrations, monkeypatch: pytest.MonkeyPatch
) -> None:
    migrations.begin(SOURCE)
    order: list[str] = []
    fsync, rename = os.fsync, os.rename

    def note_fsync(fd: int) -> None:
        order.append(os.path.basename(os.readlink(f"/proc/self/fd/{fd}")))
        fsync(fd)

    def note_rename(before: str, after: str) -> None:
        order.append(f"to {os.path.basename(after)}")
        rename(before, after)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "rename", note_rename)
    migrations.save(replace(SOURCE, state=SourceState.TRANSFERRING))
    assert order == ["source.json.new", "to source.json", ID]
    order.clear()
    assert state_in(str(source_path(migrations))) == "transferring"
    assert order == ["source.json", ID]
    order.clear()
    with migrations.lock(ID):
        assert order == ["source.json", ID, "migrations"]


def test_a_record_that_could_not_be_made_durable_is_as_it_was(
    migrations: Migrations, monkeypatch: pytest.MonkeyPatch
) -> None:
    migrations.begin(SOURCE)
    fsync = os.fsync

    def refuse_directories(fd: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(errno.EIO, "Input/output error")
        fsync(fd)

    monkeypatch.setattr(os, "fsync", refuse_directories)
    with pytest.raises(OsRefused, match="Input/output error"):
        migrations.save(replace(SOURCE, state=SourceState.TRANSFERRING))
    assert migrations.read_source(ID) == SOURCE
    assert os.listdir(migrations.directory(ID)) == ["source.json"]


def test_a_move_that_the_protocol_does_not_know_is_not_written(migrations: Migrations) -> None:
    migrations.begin(SOURCE)
    with pytest.raises(WrongState, match="committed"):
        migrations.save(replace(SOURCE, state=SourceState.COMMITTED))
    assert migrations.read_source(ID) == SOURCE
    migrations.save_decided(replace(SOURCE, state=SourceState.COMMITTED))
    found = migrations.read_source(ID)
    assert found is not None
    assert found.state is SourceState.COMMITTED


def test_a_host_is_not_both_sides_of_one_migration(migrations: Migrations) -> None:
    migrations.begin(SOURCE)
    with pytest.raises(WrongState, match=r"source\.json"):
        migrations.begin(TARGET)
    with pytest.raises(WrongState, match=ID):
        migrations.begin(SOURCE)


@pytest.mark.parametrize(
    "text", ["", "..", "a" * 15, "a" * 17, "A" * 16, "0011223344556/ff", "00112233445566ff\n"]
)
def test_what_is_no_id_never_becomes_a_path(migrations: Migrations, text: str) -> None:
    with pytest.raises(NoSuchTarget):
        migrations.read_target(text)
    with pytest.raises(NoSuchTarget):
        check_id(text)


def damage(**changes: object) -> str:
    document = json.loads(migration_records.encode(SOURCE)) | changes
    return json.dumps({name: value for name, value in document.items() if value != "left out"})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        "[" * 100_000,
        damage(version=2),
        damage(state="runs"),
        damage(state=3),
        damage(job=None),
        damage(pid="12"),
        damage(pid=-1),
        damage(pid=True),
        damage(controller=7),
        damage(controller={"pid": 7}),
        damage(id="f" * 16),
        damage(more="unknown"),
        damage(host="left out"),
        damage(options="x" * (1 << 20)),
    ],
    ids=range(17),
)
def test_a_damaged_record_is_named_and_hides_no_other(migrations: Migrations, text: str) -> None:
    migrations.begin(SOURCE)
    other = replace(SOURCE, id=new_id())
    migrations.begin(other)
    source_path(migrations).write_text(text)
    with pytest.raises(ObjectCorrupt, match=str(source_path(migrations))):
        migrations.read_source(ID)
    with pytest.raises(ObjectCorrupt):
        migrations.save(replace(SOURCE, state=SourceState.ABORTED))
    assert migrations.sources() == (other,)
    assert [ID in problem.message for problem in migrations.damaged()] == [True]
    assert set(migrations.ids()) == {ID, other.id}


def test_who_undoes_learns_the_state_or_that_it_cannot_be_known(migrations: Migrations) -> None:
    path = source_path(migrations)
    assert state_in(str(path)) == ""
    migrations.begin(SOURCE)
    assert state_in(str(path)) == "preparing"
    path.write_text("{}")
    with pytest.raises(ObjectCorrupt):
        state_in(str(path))


def test_one_process_at_a_time_works_on_a_migration(migrations: Migrations) -> None:
    migrations.begin(SOURCE)
    left = Path(migrations.directory(ID), "source.json.new")
    left.write_text("half")
    with migrations.lock(ID):
        with pytest.raises(Locked, match=f"{ID}.*{os.getpid()}"), migrations.lock(ID):
            pass
        with migrations.lock(new_id()):
            pass
    assert not left.exists()
    with migrations.lock(ID):
        pass


def test_what_is_removed_leaves_nothing_and_what_was_half_removed_is_swept(migrations: Migrations) -> None:
    migrations.begin(SOURCE)
    directory = Path(migrations.directory(ID))
    (directory / "images").mkdir()
    (directory / "images" / "pages").write_bytes(b"x")
    kept = replace(TARGET, id=new_id())
    migrations.begin(kept)
    migrations.remove(ID)
    migrations.remove(ID)
    assert os.listdir(directory.parent) == [kept.id]
    half = directory.parent / f".{ID}.gone"
    half.mkdir()
    (half / "pages").write_bytes(b"x")
    directory.mkdir()  # one that never came to begin
    migrations.sweep()
    assert os.listdir(directory.parent) == [kept.id]


def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OsRefused, match="file/migrations"):
        Migrations(str(tmp_path / "file")).begin(SOURCE)
