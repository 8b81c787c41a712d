"""The journal: entries that appear whole, notes before steps, full disks, and what is over."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckpt.errors import NoSpace, OsRefused
from ckpt.host import journal, recovery
from ckpt.host.journal import (
    CriuStarted,
    Directory,
    Entry,
    EntryDamaged,
    Filed,
    FilesTouched,
    FilesystemFrozen,
    Frozen,
    Gathered,
    Killing,
    MemoryControl,
    NetworkDetached,
    NetworkLocked,
    Origin,
    Restoring,
    SetAside,
    VolumesChanging,
)
from ckpt.host.operations import JournaledOperations
from ckpt.host.process_table import ProcessRef
from ckpt.units import Pid

STEPS = (
    CriuStarted(pid=Pid(5), start_ticks=6, log="/staging/dump.log"),
    Killing(cgroup="/cg/a"),
    Frozen(cgroup="/cg/a", held_before=True),
    NetworkLocked(run_id="30895427-9396-4c18-a2ed"),
    Gathered(cgroup="/cg/a", home="/cg", origins=(Origin(pid=Pid(7), start_ticks=8, cgroup="/cg"),)),
    Restoring(cgroup="/cg/b"),
    Filed(record="/var/lib/ckpt/jobs/web/job.json", former="/var/lib/ckpt/operations/1/former-record"),
    FilesystemFrozen(mountpoint="/srv/volume"),
    FilesTouched(ledger="/x/ledger", committed=True),
    VolumesChanging(state="/var/lib/ckpt", job="web", had_former=True, mounted=False),
    SetAside(directory="/srv", aside="/srv.aside-x"),
    Directory(path="/tmp/x"),
    MemoryControl(cgroup="/cg/memory/a", name="memory.oom_control", former="0"),
    NetworkDetached(
        pid=Pid(9), start_ticks=10, network="bridge", parent="br0", link="ckpt0", committed=False
    ),
)
ENTRY = Entry(
    what="dump", controller=ProcessRef(pid=Pid(1), start_ticks=2), boot_id="x", phase="frozen", steps=STEPS
)


def begun(state: Path) -> tuple[JournaledOperations, Path]:
    return JournaledOperations(str(state)), state / "operations"


def test_an_entry_with_every_kind_of_step_is_read_as_it_was_written() -> None:
    assert {type(step) for step in STEPS} == set(journal.UNDO_ORDER)
    assert Entry.decode(ENTRY.encode()) == ENTRY


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_any_bytes_are_an_entry_or_damaged(raw: bytes) -> None:
    with pytest.raises(EntryDamaged):
        Entry.decode(raw)


@given(st.integers(0, len(ENTRY.encode()) - 1))
def test_a_truncated_entry_is_damaged(length: int) -> None:
    with pytest.raises(EntryDamaged):
        Entry.decode(ENTRY.encode()[:length])


def test_an_entry_of_a_newer_ckpt_is_damaged_to_this_one() -> None:
    with pytest.raises(EntryDamaged):
        Entry.decode(ENTRY.encode().replace(b'"format": 1', b'"format": 2'))


def test_a_step_replaces_the_one_of_its_kind_and_subject() -> None:
    entry = ENTRY.with_step(Frozen(cgroup="/cg/a", held_before=False))
    frozen = [step for step in entry.steps if isinstance(step, Frozen)]
    assert frozen == [Frozen(cgroup="/cg/a", held_before=False)]
    assert len(entry.steps) == len(ENTRY.steps)
    assert not any(isinstance(each, Frozen) for each in entry.without_step(frozen[0]).steps)


def test_an_operation_has_an_entry_and_an_empty_staging_directory_and_leaves_nothing(tmp_path: Path) -> None:
    operations, directory = begun(tmp_path)
    operation = operations.begin("dump")
    entry = journal.read_entry(str(directory / operation.id))
    assert entry is not None
    assert entry.what == "dump"
    assert entry.controller.pid == os.getpid()
    assert os.listdir(operation.staging) == []
    (Path(operation.staging) / "image").write_text("x")
    operation.end()
    operation.end()
    assert os.listdir(directory) == []


def test_notes_and_phases_are_in_the_entry_until_they_are_forgotten(tmp_path: Path) -> None:
    operations, directory = begun(tmp_path)
    operation = operations.begin("dump")
    place = str(directory / operation.id)
    operation.note_criu(Pid(os.getpid()), log="/x")
    operation.note_network_lock("run")
    operation.note_restore("/cg/b")
    operation.note_directory("/tmp/nothing-here")
    operation.note_phase("frozen")
    entry = journal.read_entry(place)
    assert entry is not None
    assert entry.phase == "frozen"
    assert [type(step) for step in entry.steps] == [CriuStarted, NetworkLocked, Restoring, Directory]
    operation.forget_criu(Pid(os.getpid()))
    operation.forget_network_lock("run")
    operation.forget_restore("/cg/b")
    operation.forget_directory("/tmp/nothing-here")
    entry = journal.read_entry(place)
    assert entry is not None
    assert entry.steps == ()
    operation.end()


def test_nothing_is_synced_while_the_workload_is_frozen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    operation = JournaledOperations(str(tmp_path)).begin("dump")
    synced: list[bool] = []
    monkeypatch.setattr(journal, "write_entry", lambda _directory, _entry, *, sync: synced.append(sync))
    operation.note(Frozen(cgroup="/cg/none", held_before=False))
    operation.note_phase("frozen")
    operation.note_network_lock("run")
    operation.forget(Frozen(cgroup="/cg/none", held_before=False))
    operation.note_directory("/tmp/nothing-here")
    assert synced == [True, False, False, False, True]
    operation.end()


@pytest.mark.parametrize(("number", "kind"), [(errno.ENOSPC, NoSpace), (errno.EROFS, OsRefused)])
def test_a_note_that_cannot_be_written_is_told_and_the_old_entry_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[Exception]
) -> None:
    operations, directory = begun(tmp_path)
    operation = operations.begin("dump")

    def full(_fd: int) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(kind, match=str(directory)):
            operation.note(Directory(path="/tmp/x"))
        with pytest.raises(kind):
            operations.begin("another")
    entry = journal.read_entry(str(directory / operation.id))
    assert entry is not None
    assert entry.steps == ()
    assert os.listdir(directory) == [operation.id]
    operation.end()


def test_forgetting_never_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    operation = JournaledOperations(str(tmp_path)).begin("dump")
    operation.note(Directory(path=str(tmp_path / "gone")))

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(journal, "write_entry", full)
    operation.forget(Directory(path=str(tmp_path / "gone")))
    operation.end()


def test_the_failpoint_kills_this_process_when_its_phase_is_noted(tmp_path: Path) -> None:
    program = (
        "import sys; from ckpt.host.operations import JournaledOperations\n"
        "operation = JournaledOperations(sys.argv[1]).begin('dump')\n"
        "operation.note_phase('frozen'); operation.note_phase('thawed')\n"
    )
    died = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        env=os.environ | {"CKPT_FAILPOINT": "frozen"},
        check=False,
        cwd=Path(__file__).resolve().parents[3],
    )
    assert died.returncode == -signal.SIGKILL
    (name,) = os.listdir(tmp_path / "operations")
    entry = journal.read_entry(str(tmp_path / "operations" / name))
    assert entry is not None
    assert entry.phase == "frozen"
    assert len(recovery.recover_dead(str(tmp_path))) == 1
    assert os.listdir(tmp_path / "operations") == []


def left_behind(state: Path, entry: Entry, name: str = "0123456789ab-4194304-1") -> Path:
    """An operation of a process that never was."""
    directory = state / "operations" / name
    (directory / "staging").mkdir(parents=True)
    journal.write_entry(str(directory), entry, sync=False)
    return directory


def test_after_a_reboot_only_directories_are_removed(tmp_path: Path) -> None:
    rubbish = tmp_path / "rubbish"
    rubbish.mkdir()
    directory = left_behind(
        tmp_path,
        Entry(what="dump", controller=ENTRY.controller, boot_id="another", steps=STEPS).with_step(
            Directory(path=str(rubbish))
        ),
    )
    actions = recovery.recover_dead(str(tmp_path))
    assert not any(action.problem for action in actions)
    assert not rubbish.exists()
    assert not directory.exists()


def test_what_is_just_being_made_is_left_alone_while_its_maker_lives(tmp_path: Path) -> None:
    myself = journal.ProcessRef(pid=Pid(os.getpid()), start_ticks=_start_ticks(os.getpid()))
    mine = tmp_path / "operations" / f".0123456789ab-{myself.pid}-{myself.start_ticks}"
    dead = tmp_path / "operations" / ".0123456789ab-4194304-1"
    mine.mkdir(parents=True)
    dead.mkdir()
    recovery.recover_dead(str(tmp_path))
    assert mine.exists()
    assert not dead.exists()


def test_a_damaged_entry_is_told_until_a_reboot_shows_that_nothing_is_frozen(tmp_path: Path) -> None:
    directory = left_behind(tmp_path, ENTRY)
    (directory / "entry.json").write_bytes(b"{")
    (action,) = recovery.recover_dead(str(tmp_path))
    assert "damaged" in action.problem
    assert directory.exists()
    os.utime(directory, (1, 1))
    (action,) = recovery.recover_dead(str(tmp_path))
    assert not action.problem
    assert not directory.exists()


def test_what_cannot_be_undone_stays_in_the_journal_and_the_rest_is_undone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rubbish = tmp_path / "rubbish"
    rubbish.mkdir()

    def refuse(_step: journal.Gathered) -> None:
        raise OsRefused(operation="move", subject="it", reason="no")

    monkeypatch.setattr(recovery, "put_back", refuse)
    entry = Entry(
        what="dump",
        controller=ENTRY.controller,
        boot_id=recovery.boot_id(),
        steps=(
            Directory(path=str(rubbish)),
            STEPS[4],
        ),
    )
    directory = left_behind(tmp_path, entry)
    actions = recovery.recover_dead(str(tmp_path))
    assert [bool(action.problem) for action in actions] == [True, False]
    assert not rubbish.exists()
    left = journal.read_entry(str(directory))
    assert left is not None
    assert left.steps == (STEPS[4],)
    monkeypatch.undo()
    recovery.recover_dead(str(tmp_path))
    assert not directory.exists()


def _start_ticks(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


def test_a_directory_of_an_earlier_attempt_is_made_anew_and_empty(tmp_path: Path) -> None:
    operation = JournaledOperations(str(tmp_path)).begin("a dump that begins anew")
    first = Path(operation.directory("100"))
    (first / "dump.log").write_text("of the first attempt")
    assert Path(operation.directory("100")) == first
    assert list(first.iterdir()) == []
    operation.end()
