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

from ckpt.model.inodes import RoleKind
from ckpt.units import Pid

Key = tuple[int, int]
"""A file's device and inode number."""

_DELETED: Final = " (deleted)"
_ACCESS: Final = {os.O_RDONLY: "O_RDONLY", os.O_WRONLY: "O_WRONLY", os.O_RDWR: "O_RDWR"}


@dataclass(frozen=True, slots=True)
class Hold:
    """One hold on one file; `status` is of the file itself, `target` the path that the kernel gives.

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
        return self.target.removesuffix(_DELETED)

    @property
    def deleted(self) -> bool:
        """Whether no name leads to it any more."""
        return self.target.endswith(_DELETED) and not (
            stat.S_ISREG(self.status.st_mode) and self.status.st_nlink > 0
        )


@dataclass(slots=True)
class Holdings:
    """What one process holds at one moment."""

    pid: Pid
    holds: list[Hold] = field(default_factory=list)
    maps_text: bytes = b""
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
            detail = f"{name} {_flags(found.pid, name)}"
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
    seen: set[tuple[bytes, bytes]] = set()
    for line in found.maps_text.splitlines():
        fields = line.split(None, 5)
        if len(fields) < 6:  # anonymous
            continue
        addresses, _, _, device, inode, path = fields
        if path.startswith(b"/"):
            # One hold for each file is enough: its other areas say nothing new.
            if (device, inode) not in seen:
                seen.add((device, inode))
                _add_map(found, addresses.decode(), os.fsdecode(path))
            if path.startswith((b"/dev/", b"/SYSV", b"/secretmem")):
                special.append(os.fsdecode(path))
        elif path.startswith(b"anon_inode:"):
            special.append(os.fsdecode(path))
    found.special_maps = tuple(special)


def _add_map(found: Holdings, addresses: str, path: str) -> None:
    # The kernel names map_files without leading zeros, as maps does with them above 2^32 only.
    start, _, end = addresses.partition("-")
    link = f"/proc/{found.pid}/map_files/{int(start, 16):x}-{int(end, 16):x}"
    with suppress(OSError):
        found.holds.append(Hold(found.pid, RoleKind.MAP, addresses, path, os.stat(link), link))


def _flags(pid: Pid, fd: str) -> str:
    """The descriptor's access mode and O_APPEND, as in "O_WRONLY|O_APPEND"."""
    with suppress(OSError, ValueError, KeyError):
        flags = int(_fdinfo(pid, fd)["flags"], 8)
        return _ACCESS[flags & os.O_ACCMODE] + ("|O_APPEND" if flags & os.O_APPEND else "")
    return "O_RDONLY"


def _watches(pid: Pid, fd: str) -> Iterator[str]:
    with suppress(OSError), open(f"/proc/{pid}/fdinfo/{fd}", encoding="ascii", errors="replace") as stream:
        yield from (line.strip() for line in stream if line.startswith(("inotify wd:", "fanotify ino:")))


def _fdinfo(pid: Pid, fd: str) -> dict[str, str]:
    with open(f"/proc/{pid}/fdinfo/{fd}", encoding="ascii", errors="replace") as stream:
        return {name: value.strip() for name, _, value in (line.partition(":") for line in stream)}
