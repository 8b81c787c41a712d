"""The identity of every file that a workload holds, as inode virtualization will need it.

Source: statx(2), name_to_handle_at(2), ioctl_getversion (FS_IOC_GETVERSION), proc_pid_fdinfo(5).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from ckpt.units import ByteCount, DeviceNumber, Digest, InodeNumber, Nanoseconds, Pid


class InodePolicy(StrEnum):
    """What a restore does about files whose identity or content changed."""

    KEEP = "keep"
    VERIFY = "verify"
    IGNORE = "ignore"


class FileKind(StrEnum):
    """The type bits of a mode."""

    REGULAR = "regular"
    DIRECTORY = "directory"
    SYMLINK = "symlink"
    FIFO = "fifo"
    SOCKET = "socket"
    CHARACTER = "character"
    BLOCK = "block"
    OTHER = "other"


class RoleKind(StrEnum):
    """In which way a task holds a file."""

    FD = "fd"
    MAP = "map"
    CWD = "cwd"
    ROOT = "root"
    EXE = "exe"
    WATCH = "watch"
    LOCK = "lock"


@dataclass(frozen=True, slots=True, kw_only=True)
class Role:
    """One task's hold on a file. `detail` says by what:

    fd      "3 O_WRONLY|O_APPEND": the number, the access mode, and O_APPEND where it is set
    map     "7f12a000-7f12b000 r--p": one area of the file, and one through which it is written if there is one
    lock    "POSIX ADVISORY WRITE 0 EOF": kind, strictness, access, first and last byte, as /proc/locks has it
    watch   the inotify or fanotify line of fdinfo that names the file
    """

    pid: Pid
    kind: RoleKind
    detail: str


class DigestState(StrEnum):
    """Why a digest is there, or is not."""

    STABLE = "stable"  # the content did not change between the freeze and the end of the digest
    CHANGED = "changed"  # it changed after the thaw: the digest would not be the freeze's
    OVER_LIMIT = "over-limit"
    NOT_REGULAR = "not-regular"
    UNREADABLE = "unreadable"


@dataclass(frozen=True, slots=True, kw_only=True)
class FileSystem:
    """The file system that an inode lives on; `uuid` and `fsid` are "" and 0 where it has none.

    `mountpoint` is "" where the host has no such mount: then only the workload saw the file, and there is
    nothing on a host to compare it with.
    """

    type: str
    uuid: str
    fsid: int
    source: str
    mountpoint: str
    mount_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class InodeRecord:
    """One file at the freeze.

    `path` is as the holder sees it, without the kernel's " (deleted)". `generation`, `btime_ns`,
    `build_id` (hex) and `handle` (type and hex) are None where the file system or the file has none.
    """

    path: str
    kind: FileKind
    device: DeviceNumber
    inode: InodeNumber
    generation: int | None
    size_bytes: ByteCount
    mode: int
    uid: int
    gid: int
    mtime_ns: Nanoseconds
    ctime_ns: Nanoseconds
    btime_ns: Nanoseconds | None
    links: int
    deleted: bool
    filesystem: FileSystem
    build_id: str | None
    handle: str | None
    digest: Digest | None
    digest_state: DigestState
    roles: tuple[Role, ...]


class Difference(StrEnum):
    """What of a recorded file is not as it was."""

    MISSING = "missing"
    KIND = "kind"
    SIZE = "size"
    CONTENT = "content"
    MODE = "mode"
    DEVICE = "device"
    INODE = "inode"
    GENERATION = "generation"


@dataclass(frozen=True, slots=True, kw_only=True)
class FileChange:
    """One difference between a recorded file and the one that is there now, both values as text."""

    path: str
    difference: Difference
    recorded: str
    found: str

    def __str__(self) -> str:
        if self.difference is Difference.MISSING:
            return f"{self.path} is missing"
        return f"{self.path}: {self.difference} was {self.recorded}, is {self.found}"


IDENTITY_DIFFERENCES = frozenset({Difference.DEVICE, Difference.INODE, Difference.GENERATION})
"""Differences in the numbers only: the content may be the same."""
