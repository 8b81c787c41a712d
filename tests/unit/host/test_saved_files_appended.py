"""Logs that go with a checkpoint: no byte more than at the freeze, and at a restore no byte more than that."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from ckpt.errors import HostMismatch
from ckpt.host import recovery
from ckpt.host.inodes import ledger
from ckpt.host.operations import JournaledOperation, JournaledOperations
from ckpt.host.saved_files import FileSelection, HostFileSaver
from ckpt.host.saved_files_appended import SMALL_BYTES_MAX, job_of_own_file
from ckpt.host.saved_files_back import HostFileWriter, WrittenFiles
from ckpt.model.checkpoint import SavedFile

LINE = b"a line of the log\n"
LONG = LINE * (SMALL_BYTES_MAX // len(LINE) + 1)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def operation(state: Path) -> JournaledOperation:
    return JournaledOperations(str(state)).begin("a test")


@pytest.fixture
def log(state: Path, operation: JournaledOperation) -> Path:
    log = state / "jobs/web/log"
    log.parent.mkdir(parents=True)
    log.write_bytes(LONG)
    return log


@pytest.fixture
def selection(log: Path, operation: JournaledOperation) -> Iterator[FileSelection]:
    selection = HostFileSaver().select((), operation, appended=(str(log), f"{log}.stderr"))
    selection.take()
    yield selection
    selection.drop()


def stored(selection: FileSelection, place: Path) -> tuple[tuple[SavedFile, str], ...]:
    """What a store would give back of the logs."""
    files = []
    for number, (file, read) in enumerate(selection.appended()):
        copy = place / f"stored-{number}"
        copy.write_bytes(b"".join(iter(lambda read=read: read(10_000), b"")))
        assert copy.stat().st_size == file.content.size_bytes
        files.append((file, str(copy)))
    return tuple(files)


def write(
    operation: JournaledOperation, files: Sequence[tuple[SavedFile, str]], job: str = "web"
) -> WrittenFiles:
    written = HostFileWriter().begin(operation)
    written.write("web", files, (), job=job)
    return written


def append(log: Path, text: bytes) -> None:
    with log.open("ab") as stream:
        stream.write(text)


def test_what_is_appended_after_the_freeze_is_not_in_it_and_a_missing_log_is_none(
    selection: FileSelection, log: Path, tmp_path: Path
) -> None:
    append(log, b"later")
    ((file, copy),) = stored(selection, tmp_path)
    assert Path(copy).read_bytes() == LONG
    assert file.path == str(log)
    assert selection.late_warnings == ()


def test_one_that_was_cut_short_meanwhile_has_what_is_left_and_that_is_told(
    selection: FileSelection, log: Path, tmp_path: Path
) -> None:
    os.truncate(log, 10)
    ((_, copy),) = stored(selection, tmp_path)
    assert Path(copy).read_bytes() == LONG[:10]
    (warning,) = selection.late_warnings
    assert str(log) in warning


def test_a_small_one_may_be_written_anew_after_the_freeze(log: Path, operation: JournaledOperation) -> None:
    log.write_bytes(b"9")
    selection = HostFileSaver().select((), operation, appended=(str(log),))
    selection.take()
    log.write_bytes(b"10")
    ((file, read),) = selection.appended()
    assert (read(100), file.content.size_bytes) == (b"9", 1)
    selection.drop()


def test_a_log_in_a_saved_directory_is_taken_once(tmp_path: Path, operation: JournaledOperation) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    for name in ("log", "other"):
        (folder / name).write_bytes(LONG)
    selection = HostFileSaver().select((str(folder),), operation, appended=(str(folder / "log"),))
    selection.take()
    assert [saved.path for saved, _ in selection.files] == [str(folder / "other")]
    assert [saved.path for saved, _ in selection.appended()] == [str(folder / "log")]
    selection.drop()


def test_it_is_cut_where_it_was_and_only_what_came_after_is_kept_for_an_undo(
    selection: FileSelection, log: Path, tmp_path: Path, operation: JournaledOperation
) -> None:
    files = stored(selection, tmp_path)
    append(log, b"later")
    os.utime(log, ns=(1, 2))
    inode = log.stat().st_ino

    written = write(operation, files)
    assert (log.read_bytes(), log.stat().st_ino) == (LONG, inode)
    (kept,) = (path for path in log.parent.iterdir() if path != log)
    assert kept.read_bytes() == b"later"
    written.undo()
    assert (log.read_bytes(), log.stat().st_ino, log.stat().st_mtime_ns) == (LONG + b"later", inode, 2)
    assert list(log.parent.iterdir()) == [log]

    write(operation, files)
    recovery.undo_operation(os.path.dirname(operation.staging))
    assert log.read_bytes() == LONG + b"later"
    assert list(log.parent.iterdir()) == [log]


def test_wherever_a_restore_or_the_undo_of_it_is_cut_off_the_log_is_as_before_in_the_end(
    selection: FileSelection, log: Path, tmp_path: Path, operation: JournaledOperation
) -> None:
    files = stored(selection, tmp_path)
    append(log, b"later")
    write(operation, files)
    (line,) = ledger.read_ledger(operation.ledger)
    kept = next(path for path in log.parent.iterdir() if path != log)
    # Noted and linked, and not cut; or cut, and half of it written again by an undo that died.
    for found in (LONG + b"later", LONG, LONG + b"la"):
        log.write_bytes(found)
        twin = tmp_path / "twin"
        os.link(kept, twin)
        ledger.take_back([line])
        assert log.read_bytes() == LONG + b"later"
        assert not kept.exists()
        twin.rename(kept)


def test_another_log_is_replaced_and_a_missing_one_is_made(
    selection: FileSelection, log: Path, tmp_path: Path, operation: JournaledOperation
) -> None:
    files = stored(selection, tmp_path)
    for content in (b"another log", b"", LONG[:-1] + b"x" + b"later"):
        log.write_bytes(content)
        write(operation, files).undo()
        assert log.read_bytes() == content
    log.unlink()
    write(operation, files).settle()
    assert log.read_bytes() == LONG
    assert list(log.parent.iterdir()) == [log]


def test_the_log_of_another_job_stays_as_it_is(
    selection: FileSelection, log: Path, tmp_path: Path, operation: JournaledOperation
) -> None:
    files = stored(selection, tmp_path)
    append(log, b"later")
    written = write(operation, files, job="web-2")
    assert log.read_bytes() == LONG + b"later"
    assert "another job stay as they are" in written.warnings[0]


OWN_FILES = (
    "jobs/web/job.json",
    "jobs/web/exit.json",
    "jobs/web/deep/log",
    "jobs/web/.ckpt-x",
    "jobs/log",
    "keys/trusted",
    "operations/x/entry.json",
    "log",
    "jobs/../keys/log",
    "jobs/.web/log",
    "jobs/web/log/",
    "jobs/web\n/log",
)


@pytest.mark.parametrize("name", OWN_FILES)
def test_a_checkpoint_that_lies_writes_no_file_of_ckpt_itself(
    name: str, selection: FileSelection, log: Path, tmp_path: Path, operation: JournaledOperation
) -> None:
    ((file, copy),) = stored(selection, tmp_path)
    state = log.parents[2]
    path = f"{state}/{name}"
    assert job_of_own_file(path, str(state)) == ""
    with pytest.raises(HostMismatch, match=r"ckpt's own|not absolute and plain"):
        write(operation, [(replace(file, path=path), copy)])
    assert not (state / "keys").exists()
    assert log.read_bytes() == LONG


def test_a_checkpoint_that_lies_moves_no_file_of_ckpt_itself(
    state: Path, log: Path, operation: JournaledOperation
) -> None:
    for directories, absent in (((str(log.parent),), ()), ((), (str(log),))):
        with pytest.raises(HostMismatch, match="ckpt's own"):
            HostFileWriter().begin(operation).write("web", (), directories, absent=absent, job="web")
    assert log.read_bytes() == LONG


def test_logs_in_other_places_of_ckpts_own_directory_are_not_saved_and_that_is_told(
    state: Path, log: Path, operation: JournaledOperation
) -> None:
    other = state / "mine.log"
    other.touch()
    selection = HostFileSaver().select((), operation, appended=(str(other),))
    selection.take()
    assert list(selection.appended()) == []
    assert str(other) in selection.late_warnings[0]
