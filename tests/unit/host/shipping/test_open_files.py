"""Which open files travel."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from harness.moved import record_of

from ckpt.host.shipping.open_files import open_files
from ckpt.model.inodes import FileKind, InodeRecord, Role, RoleKind
from ckpt.units import Pid


@pytest.fixture
def record(tmp_path: Path) -> InodeRecord:
    (tmp_path / "file").write_bytes(b"content")
    return replace(record_of(tmp_path / "file"), path="/srv/file")


def held(record: InodeRecord, kind: RoleKind, detail: str) -> InodeRecord:
    return replace(record, roles=(Role(pid=Pid(1), kind=kind, detail=detail),))


@pytest.mark.parametrize(
    ("kind", "detail"),
    [
        (RoleKind.FD, "3 O_RDWR"),
        (RoleKind.FD, "3 O_WRONLY|O_APPEND"),
        (RoleKind.MAP, "7f12a000-7f12b000 rw-s"),
        (RoleKind.MAP, "7f12a000-7f12b000 -w-s"),
    ],
)
def test_what_is_written_to_travels_wherever_it_is(kind: RoleKind, detail: str, record: InodeRecord) -> None:
    written = held(record, kind, detail)
    assert open_files([written], ()) == ("/srv/file",)
    assert open_files([replace(written, path="/etc/state")], ()) == ("/etc/state",)


@pytest.mark.parametrize(
    ("kind", "detail"), [(RoleKind.FD, "3 O_RDONLY"), (RoleKind.MAP, "7f12a000-7f12b000 rw-p")]
)
def test_what_is_read_travels_where_the_target_lacks_it_and_it_is_not_installed(
    kind: RoleKind, detail: str, record: InodeRecord
) -> None:
    read = held(record, kind, detail)
    assert open_files([read], ()) == ()
    assert open_files([read], {"/srv/file"}) == ("/srv/file",)
    installed = replace(read, path="/usr/lib/locale/locale-archive")
    assert open_files([installed], {installed.path}) == ()


def test_programs_never_travel_nor_what_images_or_networks_bring(record: InodeRecord) -> None:
    written = held(record, RoleKind.FD, "3 O_RDWR")
    on = record.filesystem
    refused = [
        held(record, RoleKind.EXE, ""),
        held(record, RoleKind.MAP, "7f12a000-7f12b000 r-xp"),
        replace(held(record, RoleKind.MAP, "7f12a000-7f12b000 r--p"), build_id="ab"),
        held(record, RoleKind.WATCH, "inotify wd:1"),
        replace(written, deleted=True),
        replace(written, kind=FileKind.DIRECTORY),
        replace(written, path="/dev/shm/ring"),
        replace(written, path="pipe:[1]"),
        replace(written, filesystem=replace(on, type="nfs4")),
        replace(written, filesystem=replace(on, type="proc")),
        replace(written, filesystem=replace(on, mountpoint="")),
    ]
    assert open_files(refused, {record.path}) == ()
