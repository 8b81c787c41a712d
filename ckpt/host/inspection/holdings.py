"""What a process holds: descriptors, mapped files, directories. Read twice: before the freeze and under it.

Rule: under the freeze a descriptor costs one readlink and one stat, and a process's maps are parsed only if
their text changed since the first reading.
Source: proc_pid_fd(5), proc_pid_maps(5), proc_pid_fdinfo(5).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from ckpt.host.proc_text import read_text
from ckpt.model.inodes import RoleKind
from ckpt.units import Pid

Key = tuple[int, int]
"""A file's device and inode number."""

_DELETED: Final = " (deleted)"
_WRITES_FILE: Final = ("-w-s", "rw-s", "-wxs", "rwxs")
_ACCESS: Final = {os.O_RDONLY: "O_RDONLY", os.O_WRONLY: "O_WRONLY", os.O_RDWR: "O_RDWR"}


@dataclass(frozen=True, slots=True)
class Hold:
    """One hold on one file; `status` is of the file itself, `target` the path that the kernel gives.

    `detail` is the descriptor's number and flags, or an area's addresses and permissions.

    `link` is a path in /proc through which the file can be reached while it is held.
    """

    pid: Pid
    kind: RoleKind
    detail: str
    target: str
    status: os.stat_result
    link: str

    @property
    def key(self) -> Key:
        """The file's identity."""
        return (self.status.st_dev, self.status.st_ino)

    @property
    def is_file(self) -> bool:
        """Whether it has a place in a file system: no pipe, socket or anonymous inode."""
        return self.target.startswith("/")

    @property
    def path(self) -> str:
        """The path as the holder sees it."""
        return self.target.removesuffix(_DELETED) if self.deleted else self.target

    @property
    def deleted(self) -> bool:
        """Whether the name that it was opened by leads to it no more."""
        if not self.target.endswith(_DELETED):
            return False
        # The kernel appends this to the name; but a file may really be called so.
        with suppress(OSError):
            status = os.stat(f"/proc/{self.pid}/root{self.target}", follow_symlinks=False)
            return (status.st_dev, status.st_ino) != self.key
        return True

    @property
    def is_written_by_map(self) -> bool:
        """Whether it is an area of memory through which the file can be written."""
        return self.kind is RoleKind.MAP and self.detail.endswith(_WRITES_FILE)


@dataclass(slots=True)
class Holdings:
    """What one process holds at one moment.

    `fdinfo` has the texts of /proc/PID/fdinfo that were read for it, by descriptors.
    """

    pid: Pid
    holds: list[Hold] = field(default_factory=list)
    maps_text: bytes = b""
    fdinfo: dict[int, str] = field(default_factory=dict)
    special_maps: tuple[str, ...] = ()
    watches: tuple[str, ...] = ()


def read_holdings(pid: Pid, earlier: Holdings | None) -> Holdings:
    """What the process holds now; empty if it has ended.

    Args:
        pid: As this host sees it.
        earlier: An earlier reading, from which descriptors' flags and unchanged maps are taken.
    """
    found = Holdings(pid=pid)
    known = {(hold.kind, hold.detail.partition(" ")[0]): hold for hold in earlier.holds} if earlier else {}
    with suppress(FileNotFoundError, ProcessLookupError):
        _read_descriptors(found, known)
        _read_links(found)
        _read_maps(found, earlier)
    return found


def _read_descriptors(found: Holdings, known: dict[tuple[RoleKind, str], Hold]) -> None:
    directory = f"/proc/{found.pid}/fd"
    watches: list[str] = []
    for name in os.listdir(directory):
        link = f"{directory}/{name}"
        try:
            target = os.readlink(link)
            status = os.stat(link)
        except OSError:
            continue  # closed meanwhile, or a file system that does not answer
        before = known.get((RoleKind.FD, name))
        if before is not None and before.target == target and before.key == (status.st_dev, status.st_ino):
            detail = before.detail
        else:
            detail = f"{name} {_flags(found, name)}"
        if target in {"anon_inode:inotify", "inotify"} or target.startswith("anon_inode:[fanotify"):
            watches += _watches(found.pid, name)
        found.holds.append(Hold(found.pid, RoleKind.FD, detail, target, status, link))
    found.watches = tuple(watches)


def _read_links(found: Holdings) -> None:
    for kind in (RoleKind.CWD, RoleKind.ROOT, RoleKind.EXE):
        link = f"/proc/{found.pid}/{kind}"
        with suppress(OSError):
            found.holds.append(Hold(found.pid, kind, "", os.readlink(link), os.stat(link), link))


def _read_maps(found: Holdings, earlier: Holdings | None) -> None:
    with open(f"/proc/{found.pid}/maps", "rb") as stream:
        found.maps_text = stream.read()
    if earlier is not None and earlier.maps_text == found.maps_text:
        found.special_maps = earlier.special_maps
        for hold in earlier.holds:
            if hold.kind is RoleKind.MAP:
                with suppress(OSError):
                    status = os.stat(hold.link)
                    found.holds.append(Hold(hold.pid, hold.kind, hold.detail, hold.target, status, hold.link))
        return
    special: list[str] = []
    seen: set[tuple[bytes, bytes, bool]] = set()
    for line in found.maps_text.splitlines():
        fields = line.split(None, 5)
        if len(fields) < 6:  # anonymous
            continue
        addresses, permissions, _, device, inode, path = fields
        detail = f"{addresses.decode()} {permissions.decode()}"
        key = (device, inode, detail.endswith(_WRITES_FILE))
        if path.startswith(b"/") and key not in seen:
            # One hold for each file is enough, and one that writes: its other areas say nothing new.
            seen.add(key)
            mode = _add_map(found, detail, os.fsdecode(path))
            # /dev/zero is memory like any other.
            if stat.S_ISCHR(mode) and not path.startswith(b"/dev/zero"):
                special.append(os.fsdecode(path))
        if path.startswith((b"anon_inode:", b"/SYSV", b"/secretmem")):
            special.append(os.fsdecode(path))
    found.special_maps = tuple(special)


def _add_map(found: Holdings, detail: str, path: str) -> int:
    """Note the area, and give its file's mode; 0 where the area is gone."""
    # The kernel names map_files without leading zeros, as maps does with them above 2^32 only.
    start, _, end = detail.partition(" ")[0].partition("-")
    link = f"/proc/{found.pid}/map_files/{int(start, 16):x}-{int(end, 16):x}"
    try:
        status = os.stat(link)
    except OSError:
        return 0
    found.holds.append(Hold(found.pid, RoleKind.MAP, detail, path, status, link))
    return status.st_mode


def _flags(found: Holdings, fd: str) -> str:
    """The descriptor's access mode and O_APPEND, as in "O_WRONLY|O_APPEND"."""
    with suppress(OSError, ValueError, KeyError, IndexError):
        text = read_text(f"/proc/{found.pid}/fdinfo/{fd}")
        found.fdinfo[int(fd)] = text
        flags = int(text.partition("flags:")[2].split(None, 1)[0], 8)
        return _ACCESS[flags & os.O_ACCMODE] + ("|O_APPEND" if flags & os.O_APPEND else "")
    return "O_RDONLY"


def _watches(pid: Pid, fd: str) -> Iterator[str]:
    with suppress(OSError), open(f"/proc/{pid}/fdinfo/{fd}", encoding="ascii", errors="replace") as stream:
        yield from (line.strip() for line in stream if line.startswith(("inotify wd:", "fanotify ino:")))
