"""The slow facts of a file, read before the freeze where it is known by then: birth, generation, handle, mount.

Rules:
- A file is not opened for them if it need not be: a workload that watches its files would see that, and a
  lease would be broken. The generation is part of most handles; only a program is opened, for its build-id.
- An inode number that is used again belongs to another file: what was read of the first is read anew.
- A descriptor that leads to another file by now says nothing of the first: after the thaw, and before the freeze, a
  workload opens and closes as it likes.
Source: statx(2), name_to_handle_at(2), proc_pid_mountinfo(5); the layouts of handles are in the kernel's
include/linux/exportfs.h (type 1: number and generation), mm/shmem.c (the same type, longer, generation first),
fs/xfs/xfs_export.h and fs/btrfs/export.h.
"""

from __future__ import annotations

import os
import stat
import sys
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from ckpt.host.inspection import elf, syscalls
from ckpt.host.inspection.holdings import Hold, Key
from ckpt.host.mounts import Mount, mounts_of
from ckpt.model.inodes import FileKind, FileSystem
from ckpt.units import Pid

_KINDS: Final = {
    stat.S_IFREG: FileKind.REGULAR,
    stat.S_IFDIR: FileKind.DIRECTORY,
    stat.S_IFLNK: FileKind.SYMLINK,
    stat.S_IFIFO: FileKind.FIFO,
    stat.S_IFSOCK: FileKind.SOCKET,
    stat.S_IFCHR: FileKind.CHARACTER,
    stat.S_IFBLK: FileKind.BLOCK,
}
_GENERATION_AT: Final = {
    (0x01, 8): 4,
    (0x01, 12): 0,
    (0x81, 12): 8,
    (0x4D, 20): 16,
}
"""Where a handle of this type and length has the inode's generation, 32 bits: ext4, tmpfs, XFS, Btrfs."""

_NO_UUID: Final = "0" * 32
_UNKNOWN: Final = FileSystem(type="", uuid="", fsid=0, source="", mountpoint="", mount_id=-1)
_NEVER: Final = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Details:
    """What a stat does not tell of a file; `ctime_ns` is when it was last changed as this was read."""

    ctime_ns: int
    generation: int | None
    btime_ns: int | None
    build_id: str | None
    handle: str | None
    filesystem: FileSystem


def kind_of(mode: int) -> FileKind:
    """The kind of file that the mode's type bits say."""
    return _KINDS.get(stat.S_IFMT(mode), FileKind.OTHER)


_NOTHING: Final = Details(
    ctime_ns=_NEVER, generation=None, btime_ns=None, build_id=None, handle=None, filesystem=_UNKNOWN
)
"""Of no moment, so that it is read anew when the file is held again."""


class DetailReader:
    """Reads details, each mount namespace's table and each file system's facts once."""

    def __init__(self) -> None:
        self._mounts: dict[int, dict[int, Mount]] = {}
        self._filesystems: dict[tuple[int, int], FileSystem] = {}

    def read(self, hold: Hold, mount_namespace: int, *, is_program: bool) -> Details:
        """The details of a file that is held; what cannot be read any more is None or unknown.

        Args:
            hold: What it is reached through.
            mount_namespace: Of the holder.
            is_program: Whether it may have a build-id.
        """
        birth = _birth(hold)
        number, handle, build = None, None, None
        with suppress(OSError):
            kind, content = syscalls.file_handle(hold.link)
            handle = f"{kind}:{content.hex()}"
            number = generation_in(kind, content)
        if is_program and stat.S_ISREG(hold.status.st_mode):
            with suppress(OSError):
                fd = os.open(hold.link, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOATIME)
                try:
                    build = elf.build_id(fd)
                finally:
                    os.close(fd)
        found = Details(
            ctime_ns=hold.status.st_ctime_ns,
            generation=number,
            btime_ns=birth.btime_ns,
            build_id=build,
            handle=handle,
            filesystem=self._filesystem(hold, birth.mount_id, mount_namespace),
        )
        return found if _still_leads_to(hold) else _NOTHING

    def is_current(self, details: Details, hold: Hold) -> bool:
        """Whether the details are of the very file that is held now, and not of one that had its number."""
        if details.ctime_ns == hold.status.st_ctime_ns:
            return True
        return details.btime_ns is not None and details.btime_ns == _birth(hold).btime_ns

    def _filesystem(self, hold: Hold, mount_id: int, mount_namespace: int) -> FileSystem:
        key = (mount_namespace, mount_id)
        if key not in self._filesystems:
            mount = self._mounts_of(mount_namespace, hold.pid).get(mount_id)
            self._filesystems[key] = _UNKNOWN if mount is None else self._describe(mount, hold)
        return self._filesystems[key]

    def _describe(self, mount: Mount, hold: Hold) -> FileSystem:
        fsid, uuid = 0, ""
        place = f"/proc/{hold.pid}/root{mount.mountpoint}"
        with suppress(OSError):
            fsid = os.statvfs(hold.link).f_fsid
            fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                if os.fstat(fd).st_dev == hold.status.st_dev:
                    uuid = syscalls.filesystem_uuid(fd)
            finally:
                os.close(fd)
        shown_by_host = {each.shows for each in self._host_mounts.values()}
        return FileSystem(
            type=mount.filesystem,
            uuid="" if uuid == _NO_UUID else uuid,
            fsid=fsid,
            source=mount.source,
            mountpoint=mount.mountpoint if mount.shows in shown_by_host else "",
            mount_id=mount.mount_id,
        )

    def _mounts_of(self, mount_namespace: int, pid: Pid) -> dict[int, Mount]:
        if mount_namespace not in self._mounts:
            self._mounts[mount_namespace] = _mounts(pid)
        return self._mounts[mount_namespace]

    @cached_property
    def _host_mounts(self) -> dict[int, Mount]:
        return self._mounts_of(os.stat("/proc/self/ns/mnt").st_ino, Pid(os.getpid()))


def generation_of(path: str) -> int | None:
    """The generation of the file that the path leads to; None where it cannot be told."""
    try:
        return generation_in(*syscalls.file_handle(path))
    except OSError:
        return None


def generation_in(kind: int, handle: bytes) -> int | None:
    """The generation that a file handle of this type tells; None where it tells none that we know of."""
    at = _GENERATION_AT.get((kind, len(handle)))
    return None if at is None else int.from_bytes(handle[at : at + 4], sys.byteorder)


def _still_leads_to(hold: Hold) -> bool:
    # A path of a symbolic link is one of its own; a link in /proc never is.
    for follows in (True, False):
        with suppress(OSError):
            status = os.stat(hold.link, follow_symlinks=follows)
            if (status.st_dev, status.st_ino) == hold.key:
                return True
    return False


def _birth(hold: Hold) -> syscalls.Statx:
    with suppress(OSError):
        return syscalls.statx(hold.link)
    return syscalls.Statx(None, -1)


def _mounts(pid: Pid) -> dict[int, Mount]:
    with suppress(OSError):
        return {mount.mount_id: mount for mount in mounts_of(pid)}
    return {}


Known = dict[Key, Details]
