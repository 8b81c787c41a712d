"""The slow facts of a file, read before the freeze where it is known by then: birth, generation, handle, mount.

Source: statx(2), name_to_handle_at(2), proc_pid_mountinfo(5).
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from ckpt.host.inspection import elf, syscalls
from ckpt.host.inspection.holdings import Hold, Key
from ckpt.host.mounts import Mount, mounts_of
from ckpt.model.inodes import FileKind, FileSystem
from ckpt.units import Nanoseconds, Pid

_KINDS: Final = {
    stat.S_IFREG: FileKind.REGULAR,
    stat.S_IFDIR: FileKind.DIRECTORY,
    stat.S_IFLNK: FileKind.SYMLINK,
    stat.S_IFIFO: FileKind.FIFO,
    stat.S_IFSOCK: FileKind.SOCKET,
    stat.S_IFCHR: FileKind.CHARACTER,
    stat.S_IFBLK: FileKind.BLOCK,
}
_UNKNOWN: Final = FileSystem(type="", uuid="", fsid=0, source="", mountpoint="", mount_id=-1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Details:
    """What a stat does not tell of a file."""

    generation: int | None
    btime_ns: Nanoseconds | None
    build_id: str | None
    handle: str | None
    filesystem: FileSystem


def kind_of(mode: int) -> FileKind:
    """The kind of file that the mode's type bits say."""
    return _KINDS.get(stat.S_IFMT(mode), FileKind.OTHER)


class DetailReader:
    """Reads details, each mount namespace's table and each file system's facts once."""

    def __init__(self) -> None:
        self._mounts: dict[int, dict[int, Mount]] = {}
        self._uuids: dict[int, str] = {}

    def read(self, hold: Hold, mount_namespace: int) -> Details:
        """The details of a file that is held; what cannot be read any more is None."""
        birth = syscalls.Statx(None, -1)
        with suppress(OSError):
            birth = syscalls.statx(hold.link)
        handle = None
        with suppress(OSError):
            kind, content = syscalls.file_handle(hold.link)
            handle = f"{kind}:{content.hex()}"
        number, build = None, None
        # Opening anything else (a FIFO, a device) could have effects of its own.
        if kind_of(hold.status.st_mode) in (FileKind.REGULAR, FileKind.DIRECTORY):
            with suppress(OSError):
                fd = os.open(hold.link, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOATIME)
                try:
                    number = syscalls.generation(fd)
                    self._uuids.setdefault(hold.status.st_dev, syscalls.filesystem_uuid(fd))
                    if stat.S_ISREG(hold.status.st_mode):
                        build = elf.build_id(fd)
                finally:
                    os.close(fd)
        return Details(
            generation=number,
            btime_ns=None if birth.btime_ns is None else Nanoseconds(birth.btime_ns),
            build_id=build,
            handle=handle,
            filesystem=self._filesystem(hold, birth.mount_id, mount_namespace),
        )

    def _filesystem(self, hold: Hold, mount_id: int, mount_namespace: int) -> FileSystem:
        if mount_namespace not in self._mounts:
            self._mounts[mount_namespace] = _mounts(hold.pid)
        mount = self._mounts[mount_namespace].get(mount_id)
        if mount is None:
            return _UNKNOWN
        fsid = 0
        with suppress(OSError):
            fsid = os.statvfs(hold.link).f_fsid
        return FileSystem(
            type=mount.filesystem,
            uuid=self._uuids.get(hold.status.st_dev, ""),
            fsid=fsid,
            source=mount.source,
            mountpoint=mount.mountpoint,
            mount_id=mount_id,
        )


def _mounts(pid: Pid) -> dict[int, Mount]:
    with suppress(OSError):
        return {mount.mount_id: mount for mount in mounts_of(pid)}
    return {}


Known = dict[Key, Details]
