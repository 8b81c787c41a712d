"""Which files are shown under their inode numbers, and which workload is refused."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from harness.moved import moved, record_of, replace_by_copy

from ckpt.errors import HostMismatch
from ckpt.host.inodes.fuse.choosing import choose, is_wanted, note, noted, paths_of
from ckpt.host.inodes.moved import MovedFile
from ckpt.model.inodes import Identity, InodeMethod, InodeRecord, Role, RoleKind
from ckpt.units import DeviceNumber, InodeNumber, Pid


def replaced(path: Path) -> MovedFile:
    """A file that was recorded and then replaced."""
    path.write_bytes(b"content")
    record = record_of(path)
    # Its number must not become that of the next file.
    os.link(path, path.with_name(path.name + ".former"))
    replace_by_copy(path)
    return moved(record)


def held_as(record: InodeRecord, kind: RoleKind) -> InodeRecord:
    return replace(record, roles=(*record.roles, Role(pid=Pid(1), kind=kind, detail="")))


def test_a_file_is_shown_under_the_number_that_was_seen(tmp_path: Path) -> None:
    file = replaced(tmp_path / "file")
    seen = Identity(device=DeviceNumber(1), inode=InodeNumber(4711))
    file = replace(file, record=replace(file.record, seen=seen))
    (shown,) = choose([file], [file.record])
    found = (tmp_path / "file").stat()
    assert (shown["device"], shown["inode"]) == (found.st_dev, found.st_ino)
    assert (shown["number"], shown["paths"]) == (4711, [str(tmp_path / "file")])


def test_all_names_of_a_file_are_one_file(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_bytes(b"content")
    os.link(one, two)
    records = [record_of(one), record_of(two)]
    replace_by_copy(one)
    two.unlink()
    os.link(one, two)
    (shown,) = choose([moved(record) for record in records], records)
    assert shown["paths"] == [str(one), str(two)]


def test_what_gains_nothing_or_does_harm_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "same").write_bytes(b"content")
    same = record_of(tmp_path / "same")
    other_device = replace(same, device=DeviceNumber(same.device + 1))
    first, second = replaced(tmp_path / "first"), replaced(tmp_path / "second")
    taken = replace(second, record=replace(second.record, inode=first.record.inode))
    watched = replaced(tmp_path / "watched")
    watched = replace(watched, record=held_as(watched.record, RoleKind.WATCH))
    crooked = replaced(tmp_path / "crooked")
    crooked = replace(crooked, path=f"{tmp_path}/../{tmp_path.name}/crooked")
    reserved = replaced(tmp_path / "reserved")
    reserved = replace(reserved, record=replace(reserved.record, inode=InodeNumber(0)))
    files = [moved(other_device), first, taken, watched, crooked, reserved]
    assert list(paths_of(choose(files, [file.record for file in files]))) == [first.path]


def test_a_database_that_maps_its_shared_memory_must_keep_all_of_its_identity(tmp_path: Path) -> None:
    (tmp_path / "rows.db-shm").write_bytes(b"content")
    shm = held_as(record_of(tmp_path / "rows.db-shm"), RoleKind.MAP)
    log, database = replaced(tmp_path / "a.log"), replaced(tmp_path / "rows.db")

    assert len(choose([log], [log.record, shm])) == 1
    with pytest.raises(HostMismatch) as refused:
        choose([log, database], [log.record, database.record, shm])
    assert shm.path in str(refused.value)
    not_mapped = record_of(tmp_path / "rows.db-shm")
    assert len(choose([log, database], [log.record, database.record, not_mapped])) == 2


def test_what_was_chosen_is_found_again(tmp_path: Path) -> None:
    assert noted(str(tmp_path)) == ()
    file = replaced(tmp_path / "name \udcff")
    chosen = choose([file], [file.record])
    note(str(tmp_path), chosen)
    assert noted(str(tmp_path)) == chosen


def test_it_is_the_last_way() -> None:
    assert not is_wanted(frozenset(InodeMethod))
    assert not is_wanted({InodeMethod.PLACED})
    assert is_wanted({InodeMethod.PLACED, InodeMethod.FUSE})
