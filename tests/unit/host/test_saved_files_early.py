"""What is copied before the freeze is right only if it is right under it."""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from ckpt.host import saved_files, saved_files_early
from ckpt.host.operations import JournaledOperation, JournaledOperations
from ckpt.host.saved_files import FileSelection, HostFileSaver
from ckpt.host.saved_files_found import filesystem_of

THEN = b"then"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    if filesystem_of(str(tmp_path)) not in saved_files_early._TRUSTED:
        pytest.skip("on this file system nothing is copied early")
    folder = tmp_path / "files"
    folder.mkdir()
    return folder


@pytest.fixture
def operation(tmp_path: Path) -> JournaledOperation:
    return JournaledOperations(str(tmp_path / "state")).begin("a test")


@pytest.fixture(autouse=True)
def no_time_to_settle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saved_files_early, "SETTLED_NS", 20_000_000)


@pytest.fixture
def copied_late(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The inode numbers of the files that were copied by take()."""
    copied = []
    copy_frozen = saved_files.sparse_copy.copy_frozen

    def seen(source: int, size: int, copy: str) -> None:
        copied.append(os.fstat(source).st_ino)
        copy_frozen(source, size, copy)

    monkeypatch.setattr(saved_files.sparse_copy, "copy_frozen", seen)
    return copied


def selected(folder: Path, operation: JournaledOperation) -> FileSelection:
    settled_ns = max(path.stat().st_ctime_ns for path in folder.rglob("*")) + saved_files_early.SETTLED_NS
    while time.time_ns() <= settled_ns:
        pass
    return HostFileSaver().select((str(folder),), operation)


def copies(selection: FileSelection) -> dict[str, bytes]:
    return {os.path.basename(saved.path): Path(copy).read_bytes() for saved, copy in selection.files}


def change(folder: Path) -> None:
    (folder / "b").write_bytes(b"LATE")


def replace(folder: Path) -> None:
    (folder / "new").write_bytes(b"LATE")
    (folder / "new").rename(folder / "b")


def rotate(folder: Path) -> None:
    """A name goes to another file, and the file gets another name: the copies of both must not meet."""
    (folder / "a").rename(folder / "a.1")
    (folder / "a").write_bytes(b"LATE")


def set_attributes(folder: Path) -> None:
    (folder / "b").chmod(0o611)


@dataclass(frozen=True, kw_only=True)
class Case:
    act: Callable[[Path], object]
    expected: dict[str, bytes]
    count: int


CASES = (
    Case(act=lambda _: None, expected={"a": THEN, "b": THEN, "c": THEN}, count=0),
    Case(act=change, expected={"a": THEN, "b": b"LATE", "c": THEN}, count=1),
    Case(act=replace, expected={"a": THEN, "b": b"LATE", "c": THEN}, count=1),
    Case(act=rotate, expected={"a": b"LATE", "a.1": THEN, "b": THEN, "c": THEN}, count=2),
    Case(act=set_attributes, expected={"a": THEN, "b": THEN, "c": THEN}, count=1),
    Case(act=lambda folder: (folder / "b").unlink(), expected={"a": THEN, "c": THEN}, count=0),
)


@pytest.mark.parametrize("case", CASES)
def test_under_the_freeze_only_what_changed_is_copied(
    case: Case, folder: Path, operation: JournaledOperation, copied_late: list[int]
) -> None:
    for name in "abc":
        (folder / name).write_bytes(THEN)
    selection = selected(folder, operation)
    case.act(folder)
    selection.take()
    assert copies(selection) == case.expected
    assert len(copied_late) == case.count
    assert {saved.path: saved.mode for saved, _ in selection.files} == {
        str(path): path.stat().st_mode for path in folder.iterdir()
    }


def test_a_file_that_is_mapped_to_be_written_is_copied_under_the_freeze(
    folder: Path, operation: JournaledOperation, copied_late: list[int]
) -> None:
    for name in "ab":
        (folder / name).write_bytes(THEN)
    with (folder / "a").open("r+b") as file, mmap.mmap(file.fileno(), 4) as mapped:
        mapped[0:1] = b"T"  # from now on the page is written to without anybody being told
        selection = selected(folder, operation)
        mapped[0:4] = b"LATE"
        selection.take()
    assert copies(selection) == {"a": b"LATE", "b": THEN}
    assert copied_late == [(folder / "a").stat().st_ino]


def test_one_that_changed_a_moment_ago_is_copied_under_the_freeze(
    folder: Path, operation: JournaledOperation, copied_late: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saved_files_early, "SETTLED_NS", 3600 * 10**9)
    (folder / "a").write_bytes(THEN)
    selection = HostFileSaver().select((str(folder),), operation)
    selection.take()
    assert copies(selection) == {"a": THEN}
    assert len(copied_late) == 1
