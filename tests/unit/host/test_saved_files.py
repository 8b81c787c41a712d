"""Which files are saved, what a copy of them is, and how they come back."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from harness.moved import listing

from ckpt.errors import HostMismatch, NoSpace, Usage
from ckpt.host import recovery, saved_files, saved_files_found
from ckpt.host.inodes.ledger import TEMPORARY_PREFIX
from ckpt.host.operations import JournaledOperation, JournaledOperations
from ckpt.host.saved_files import FileSelection, HostFileSaver
from ckpt.host.saved_files_aside import (
    ASIDES_KEPT,
    move_aside,
    move_back,
    newer_files,
    place_beside,
    remove_older,
)
from ckpt.host.saved_files_back import HostFileWriter, WrittenFiles
from ckpt.host.saved_files_found import check_paths, find_files
from ckpt.model.shipping import ShippedDirectory


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "files"
    folder.mkdir()
    return folder


@pytest.fixture
def operation(tmp_path: Path) -> JournaledOperation:
    return JournaledOperations(str(tmp_path / "state")).begin("a test")


def taken(operation: JournaledOperation, *paths: Path) -> FileSelection:
    selection = HostFileSaver().select(tuple(map(str, paths)), operation)
    selection.take()
    return selection


def write_back(operation: JournaledOperation, selection: FileSelection) -> WrittenFiles:
    written = HostFileWriter().begin(operation)
    try:
        written.write("web", selection.files, selection.directories)
    except BaseException:
        written.undo()
        raise
    return written


def tree(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path.relative_to(folder)): (path.stat().st_ino, path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_directory_stands_for_all_regular_files_below_it_and_the_rest_is_told(folder: Path) -> None:
    for name in ("a", "b/c", "b/d/e", f"{TEMPORARY_PREFIX}ours/f"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    (folder / "link").symlink_to("/etc")
    os.mkfifo(folder / "fifo")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(folder / "socket"))
        found = find_files([str(folder)])
    assert [file.path for file in found.files] == [str(folder / name) for name in ("a", "b/c", "b/d/e")]
    (warning,) = found.warnings
    assert warning.startswith("3 link(s), socket(s) or FIFO(s) are not saved")


def test_named_paths_are_resolved_and_those_inside_of_others_are_left_out(
    folder: Path, tmp_path: Path
) -> None:
    (folder / "deep").mkdir()
    (folder / "deep/file").touch()
    (tmp_path / "link").symlink_to(folder)
    named = [str(tmp_path / "link"), str(folder / "deep/file"), str(folder)]
    assert check_paths(named, "/var/lib/ckpt") == (str(folder),)


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/proc/version", "it is on proc, which the kernel makes up"),
        ("/sys", "it is on sysfs, which the kernel makes up"),
        ("/nowhere", "there is no such file or directory"),
        ("/dev/zero", "neither a regular file nor a directory"),
        ("/var", "ckpt's own /var/lib/ckpt is in it"),
        ("/var/lib/dpkg/status", "it is in ckpt's own /var/lib/dpkg"),
    ],
)
def test_what_cannot_be_saved_is_refused_with_the_reason(path: str, reason: str) -> None:
    with pytest.raises(Usage, match=re.escape(reason)):
        check_paths([path], "/var/lib/dpkg" if "dpkg" in path else "/var/lib/ckpt")


def test_too_many_files_are_refused_with_the_number(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saved_files_found, "FILES_MAX", 2)
    for name in "abc":
        (folder / name).write_bytes(b"12")
    with pytest.raises(Usage, match="more than 2 files, the first of which have 4 bytes"):
        find_files([str(folder)])


def test_copies_that_have_no_room_are_refused_with_numbers(
    folder: Path, operation: JournaledOperation, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (folder / "big").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, 1 << 20)
    monkeypatch.setattr(saved_files, "_can_clone", lambda *_: False)
    space = os.statvfs(folder)

    class Full:
        f_bavail = 5
        f_frsize = space.f_frsize

    monkeypatch.setattr(saved_files.os, "statvfs", lambda _: Full)
    with pytest.raises(NoSpace) as refused:
        HostFileSaver().select((str(folder),), operation)
    assert (refused.value.available_bytes, refused.value.needed_bytes) == (5 * space.f_frsize, 1 << 20)


def test_names_of_one_file_are_copied_once_under_a_name_that_stays(
    folder: Path, operation: JournaledOperation, tmp_path: Path
) -> None:
    (folder / "a").write_bytes(b"content")
    os.link(folder / "a", folder / "b")
    (folder / "c").write_bytes(b"content")
    first = taken(operation, folder).files
    names = [saved.content.name for saved, _ in first]
    assert names[0] == names[1] != names[2]
    assert [Path(copy).read_bytes() for _, copy in first] == [b"content"] * 3
    again = taken(JournaledOperations(str(tmp_path / "other")).begin("another"), folder).files
    assert [saved.content.name for saved, _ in again] == names


def test_a_file_with_another_writer_is_told(
    folder: Path, operation: JournaledOperation, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "ab":
        (folder / name).write_bytes(b"content")
    copy_frozen = saved_files.sparse_copy.copy_frozen

    def meanwhile(source: int, size: int, copy: str) -> None:
        copy_frozen(source, size, copy)
        (folder / "a").write_bytes(b"CONTENT")
        os.utime(folder / "a", ns=(1, 1))

    monkeypatch.setattr(saved_files.sparse_copy, "copy_frozen", meanwhile)
    (warning,) = taken(operation, folder).warnings
    assert "1 saved file(s) were written to by another process" in warning
    assert warning.endswith(str(folder / "a"))


def test_files_are_moved_aside_and_back_and_nothing_is_written_over(folder: Path) -> None:
    for name in ("kept", "new", "deep/newer"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(name)
    before = tree(folder)
    aside = place_beside(str(folder), "mark")
    newer = newer_files(str(folder), {str(folder / "kept")})
    move_aside(str(folder), aside, newer)
    assert [path.name for path in folder.rglob("*") if path.is_file()] == ["kept"]
    assert move_back(str(folder), aside) == 2
    assert tree(folder) == before
    assert move_back(str(folder), aside) == 0

    move_aside(str(folder), aside, newer)
    (folder / "new").write_text("newest")
    with pytest.raises(Exception, match="File exists"):
        move_back(str(folder), aside)
    assert (folder / "new").read_text() == "newest"
    assert (Path(aside) / "new").read_text() == "new"


def test_what_was_moved_aside_goes_after_some_restores_and_nothing_else_does(folder: Path) -> None:
    others = [folder.parent / name for name in ("files.aside-mine", "filesx.aside-000000000000")]
    for other in others:
        other.mkdir(mode=0o700)
    asides = []
    for number in range(ASIDES_KEPT + 2):
        (folder / "new").touch()
        asides.append(Path(place_beside(str(folder), f"{number:012x}")))
        move_aside(str(folder), str(asides[-1]), [str(folder / "new")])
        remove_older(str(asides[-1]))
    assert [aside.exists() for aside in asides] == [False, False, *[True] * ASIDES_KEPT]
    assert all(other.exists() for other in others)


def test_a_store_in_a_saved_directory_is_neither_saved_nor_moved_and_that_is_told(
    folder: Path, operation: JournaledOperation
) -> None:
    (folder / "file").write_bytes(b"then")
    store = folder / "deep/store"
    for name in ("manifests/a", "packs/b", "placements/c", "config"):
        (store / name).parent.mkdir(parents=True, exist_ok=True)
        (store / name).write_bytes(b"of the store")
    selection = taken(operation, folder)
    assert [saved.path for saved, _ in selection.files] == [str(folder / "file")]
    (warning,) = selection.warnings
    assert warning.startswith("1 store(s) of checkpoints are not saved")
    (store / "packs/later").touch()
    write_back(operation, selection).settle()
    assert (store / "packs/later").exists()


def test_what_is_as_it_was_saved_is_not_touched(folder: Path, operation: JournaledOperation) -> None:
    (folder / "same").write_bytes(b"content")
    selection = taken(operation, folder)
    changed_ns = (folder / "same").stat().st_ctime_ns
    write_back(operation, selection).settle()
    assert (folder / "same").stat().st_ctime_ns == changed_ns


def spoil_link(folder: Path) -> None:
    (folder / "a").rename(folder.with_name("elsewhere"))
    (folder / "a").symlink_to(folder.with_name("elsewhere"))


def spoil_kind(folder: Path) -> None:
    (folder / "a").unlink()
    os.mkfifo(folder / "a")


def spoil_directory(folder: Path) -> None:
    folder.rename(folder.with_name("moved"))
    folder.symlink_to("moved")


def spoil_owner(folder: Path) -> None:
    if os.geteuid():
        pytest.skip("only root gives files away")
    os.chown(folder / "a", 12345, 12345)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (spoil_link, "no file is in the way"),
        (spoil_kind, "no file is in the way"),
        (spoil_directory, "symbolic link"),
        (spoil_owner, "it belongs to uid 12345"),
    ],
)
def test_one_file_that_cannot_be_written_leaves_all_as_they_are(
    spoil: Callable[[Path], None], reason: str, folder: Path, operation: JournaledOperation
) -> None:
    for name in "ab":
        (folder / name).write_bytes(b"then")
    selection = taken(operation, folder)
    (folder / "b").write_bytes(b"later")
    (folder / "new").write_bytes(b"new")
    spoil(folder)
    with pytest.raises(HostMismatch, match=reason):
        write_back(operation, selection)
    assert (folder / "b").read_bytes() == b"later"
    assert (folder / "new").exists()


def changed_files(folder: Path, operation: JournaledOperation) -> FileSelection:
    for name in ("a", "deep/b"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"then")
    selection = taken(operation, folder)
    (folder / "a").write_bytes(b"later")
    (folder / "deep/b").unlink()
    (folder / "deep").rmdir()
    (folder / "new").write_bytes(b"new")
    return selection


def test_undo_and_recovery_after_a_crash_leave_everything_as_it_was_found(
    folder: Path, operation: JournaledOperation
) -> None:
    selection = changed_files(folder, operation)
    before = tree(folder)
    written = write_back(operation, selection)
    assert {name: content for name, (_, content) in tree(folder).items() if name[0] != "."} == {
        "a": b"then",
        "deep/b": b"then",
    }
    written.undo()
    assert tree(folder) == before

    write_back(operation, selection)
    actions = recovery.undo_operation(os.path.dirname(operation.staging))
    assert not [action for action in actions if action.problem]
    assert tree(folder) == before
    assert [path.name for path in folder.parent.iterdir() if "aside" in path.name] == []


def test_after_the_commit_a_crash_takes_nothing_back_and_leaves_no_former_content(
    folder: Path, operation: JournaledOperation
) -> None:
    write_back(operation, changed_files(folder, operation))
    operation.commit_restore(frozen=None)
    recovery.undo_operation(os.path.dirname(operation.staging))
    assert {name: content for name, (_, content) in tree(folder).items()} == {"a": b"then", "deep/b": b"then"}
    (aside,) = folder.parent.glob("files.aside-*")
    assert (aside / "new").read_bytes() == b"new"


def test_what_may_not_be_found_is_moved_aside_and_comes_back_with_an_undo(
    folder: Path, operation: JournaledOperation
) -> None:
    journal = folder / "facts.db-journal"
    (folder / "facts.db").write_bytes(b"then")
    selection = taken(operation, folder / "facts.db")
    (folder / "facts.db").write_bytes(b"later")
    journal.write_bytes(b"hot")
    (folder / "other").write_bytes(b"other")
    before = tree(folder)
    absent = (str(journal), str(folder / "facts.db-wal"), str(folder / "gone/journal"))

    with open(journal, "ab"), pytest.raises(HostMismatch, match="was not there, and another process"):
        HostFileWriter().begin(operation).write("web", selection.files, (), absent=absent)
    assert tree(folder) == before

    written = HostFileWriter().begin(operation)
    written.write("web", selection.files, (), absent=absent)
    assert {name for name in tree(folder) if name[0] != "."} == {"facts.db", "other"}
    (aside,) = folder.parent.glob("files.aside-*")
    assert [path.name for path in aside.iterdir()] == [journal.name]
    assert str(aside) in written.warnings[0]
    written.undo()
    assert tree(folder) == before


def test_directories_are_made_as_they_were_and_go_with_an_undo(
    folder: Path, operation: JournaledOperation
) -> None:
    (folder / "there").mkdir(mode=0o755)
    (folder / "file").touch()
    names = {"there": 0o700, "deep/empty": 0o750, "deep/empty/inner": 0o1777}
    made = [
        ShippedDirectory(path=str(folder / name), mode=mode, uid=os.getuid(), gid=os.getgid())
        for name, mode in names.items()
    ]

    def modes() -> dict[str, int]:
        return {name: (folder / name).stat().st_mode & 0o7777 for name in names if (folder / name).exists()}

    written = HostFileWriter().begin(operation)
    written.write("web", (), (), made=made)
    assert modes() == names | {"there": 0o755}
    written.undo()
    assert modes() == {"there": 0o755}
    assert not (folder / "deep").exists()
    with pytest.raises(HostMismatch, match="no directory is in the way"):
        HostFileWriter().begin(operation).write(
            "web", (), (), made=[replace(made[0], path=str(folder / "file"))]
        )


@pytest.mark.parametrize("is_there", [True, False])
def test_extended_attributes_and_access_lists_are_those_of_the_dump(
    folder: Path, operation: JournaledOperation, *, is_there: bool
) -> None:
    file = folder / "file"
    file.write_bytes(b"then")
    os.setxattr(file, "user.origin", b"\x00lab")
    # user::rw-, user:1000:r--, group::r--, mask::r--, other::---
    acl = bytes.fromhex(
        "0200000001000600ffffffff02000400e803000004000400ffffffff10000400ffffffff20000000ffffffff"
    )
    try:
        os.setxattr(file, "system.posix_acl_access", acl)
    except OSError:
        pytest.skip("this file system has no access control lists")
    mode = file.stat().st_mode
    selection = taken(operation, folder)
    if is_there:
        os.removexattr(file, "system.posix_acl_access")
        os.setxattr(file, "user.origin", b"other")
        os.setxattr(file, "user.later", b"x")
        file.chmod(0o600)
    else:
        file.unlink()
    before = listing(folder)

    written = write_back(operation, selection)
    assert {name: os.getxattr(file, name) for name in os.listxattr(file)} == {
        "system.posix_acl_access": acl,
        "user.origin": b"\x00lab",
    }
    assert file.stat().st_mode == mode
    written.undo()
    assert listing(folder) == before

    write_back(operation, selection).settle()
    again = HostFileWriter().begin(operation)
    changed_ns = file.stat().st_ctime_ns
    again.write("web", selection.files, selection.directories)
    assert file.stat().st_ctime_ns == changed_ns
