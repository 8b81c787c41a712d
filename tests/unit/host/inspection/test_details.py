"""The generation that handles tell, against what the file system itself says."""

from __future__ import annotations

import fcntl
import os
import sys
from pathlib import Path

import pytest

from ckpt.host.inspection import syscalls
from ckpt.host.inspection.details import DetailReader, generation_in, generation_of
from ckpt.host.inspection.holdings import Hold
from ckpt.model.inodes import RoleKind
from ckpt.units import Pid

FS_IOC_GETVERSION = 0x80087601


def test_the_generation_in_a_handle_is_the_one_of_the_file_system(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    try:
        syscalls.file_handle(str(path))
    except OSError as error:
        pytest.skip(f"no handles here: {error}")
    with path.open("rb") as file:
        try:
            answer = fcntl.ioctl(file, FS_IOC_GETVERSION, bytes(8))
        except OSError as error:
            pytest.skip(f"this file system tells no generation: {error}")
    assert generation_of(str(path)) == int.from_bytes(answer[:4], sys.byteorder)


def test_a_handle_of_an_unknown_layout_tells_no_generation() -> None:
    assert generation_in(0xF8, bytes(24)) is None
    assert generation_in(1, b"") is None


def test_a_file_that_is_not_there_has_no_generation(tmp_path: Path) -> None:
    assert generation_of(str(tmp_path / "gone")) is None


def test_a_file_is_found_again_by_its_handle_whatever_its_name(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("open_by_handle_at(2) needs CAP_DAC_READ_SEARCH")
    path = tmp_path / "file"
    path.write_bytes(b"content")
    try:
        kind, handle = syscalls.file_handle(str(path))
    except OSError as error:
        pytest.skip(f"no handles here: {error}")
    path.rename(tmp_path / "renamed")
    directory = os.open(tmp_path, os.O_RDONLY)
    try:
        fd = syscalls.open_by_handle(directory, kind, handle, os.O_RDONLY)
        try:
            assert os.read(fd, 7) == b"content"
            syscalls.link_open_file(fd, str(tmp_path / "linked"))
        finally:
            os.close(fd)
        assert (tmp_path / "linked").samefile(tmp_path / "renamed")
        (tmp_path / "linked").unlink()
        (tmp_path / "renamed").unlink()
        with pytest.raises(OSError, match=r"[Ss]tale"):
            syscalls.open_by_handle(directory, kind, handle, os.O_RDONLY)
    finally:
        os.close(directory)


def test_the_birth_of_a_file_lies_between_two_readings_of_the_clock(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    birth = syscalls.statx(str(path))
    assert birth.btime_ns is None or birth.btime_ns <= path.stat().st_ctime_ns
    with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as stream:
        assert birth.mount_id in [-1, *(int(line.split()[0]) for line in stream)]


def test_a_descriptor_that_leads_to_another_file_by_now_says_nothing_of_the_first(tmp_path: Path) -> None:
    def details() -> tuple[str, str | None]:
        found = DetailReader().read(hold, os.stat("/proc/self/ns/mnt").st_ino, is_program=False)
        return found.filesystem.mountpoint, found.handle

    ours, other = os.pipe()
    link = f"/proc/self/fd/{ours}"
    hold = Hold(Pid(os.getpid()), RoleKind.FD, f"{ours} O_RDONLY", os.readlink(link), os.stat(link), link)
    assert details()[0] == ""
    file = os.open(tmp_path, os.O_RDONLY)
    os.dup2(file, ours)
    try:
        assert details() == ("", None)
    finally:
        for fd in (ours, other, file):
            os.close(fd)
