"""The identity of every file that a workload holds, as inode virtualization will need it.

Source: statx(2), name_to_handle_at(2), ioctl_getversion (FS_IOC_GETVERSION), proc_pid_fdinfo(5).
"""

from __future__ import annotations

import stat
from dataclasses import dataclass
from enum import StrEnum

from ckpt.units import ByteCount, DeviceNumber, Digest, InodeNumber, Nanoseconds, Pid


class InodePolicy(StrEnum):
    """What a restore does about files whose identity or content changed."""

    KEEP = "keep"
    VERIFY = "verify"
    IGNORE = "ignore"


class FilesPolicy(StrEnum):
    """Which contents a restored workload finds in its files."""

    SAVED = "saved"  # those that were saved with its memory
    NEWEST = "newest"  # those that are there now


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What stat(2) tells two files apart by."""

    device: DeviceNumber
    inode: InodeNumber


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


_TYPE_BITS = {
    FileKind.REGULAR: stat.S_IFREG,
    FileKind.DIRECTORY: stat.S_IFDIR,
    FileKind.SYMLINK: stat.S_IFLNK,
    FileKind.FIFO: stat.S_IFIFO,
    FileKind.SOCKET: stat.S_IFSOCK,
    FileKind.CHARACTER: stat.S_IFCHR,
    FileKind.BLOCK: stat.S_IFBLK,
}
_DEVICE_MAX = (1 << 32) - 1  # 12 bits of major, 20 of minor: include/linux/kdev_t.h
_EXT = frozenset(("ext2", "ext3", "ext4"))
_EXT_RESERVED = frozenset((0, 1, *range(3, 11)))  # 2 is the root: EXT4_FIRST_INO in fs/ext4/ext4.h


class RoleKind(StrEnum):
    """In which way a task holds a file."""

    FD = "fd"
    MAP = "map"
    CWD = "cwd"
    ROOT = "root"
    EXE = "exe"
    WATCH = "watch"
    LOCK = "lock"
    BOUND = "bound"
    ABOVE = "above"


@dataclass(frozen=True, slots=True, kw_only=True)
class Role:
    """One task's hold on a file. `detail` says by what:

    fd      "3 O_WRONLY|O_APPEND": the number, the access mode, and O_APPEND where it is set
    map     "7f12a000-7f12b000 r--p": one area of the file, and one through which it is written if there is one
    lock    "POSIX ADVISORY WRITE 0 EOF": kind, strictness, access, first and last byte, as /proc/locks has it
    watch   the inotify or fanotify line of fdinfo that names the file
    bound   "": a unix socket of the task has this name
    above   "": a directory on the path of a file that it holds; it holds the directory itself in no way
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

    `path` is as the holder sees it, without the kernel's " (deleted)"; of what has no place in a file system it is
    the kernel's name: "pipe:[4711]", "socket:[4712]", "/memfd:name". `generation`, `btime_ns`, `build_id` (hex)
    and `handle` (type and hex) are None where the file system or the file has none. `seen` is the identity that
    the workload sees, None where that is the real one.
    """

    path: str
    kind: FileKind
    device: DeviceNumber
    inode: InodeNumber
    seen: Identity | None
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

    @property
    def identity(self) -> Identity:
        """The identity that the workload saw at the freeze, and must go on seeing."""
        return self.seen or Identity(device=self.device, inode=self.inode)


def lie_of(record: InodeRecord) -> str:
    """What of a record cannot be true of any file on Linux; "" if nothing.

    A checkpoint may come from anywhere, and a restore acts on what it says of files.
    """
    parts = record.path.split("/")
    if record.path.startswith("/") and record.path != "/" and not {"", ".", ".."}.isdisjoint(parts[1:]):
        return "its path is not plain"
    if record.kind is not FileKind.OTHER and stat.S_IFMT(record.mode) != _TYPE_BITS[record.kind]:
        return f"it is a {record.kind}, and its mode {record.mode:#o} says something else"
    for identity in (Identity(device=record.device, inode=record.inode), record.identity):
        if identity.device > _DEVICE_MAX:
            return f"no device has the number {identity.device:#x}"
        if record.filesystem.type in _EXT and identity.inode in _EXT_RESERVED:
            return f"the inode {identity.inode} is reserved on {record.filesystem.type}"
    return ""


class InodeMethod(StrEnum):
    """How a restored workload came to see the identity of a file; the first that can is taken."""

    SAME = "same"  # it is the same file still
    PINNED = "pinned"  # the very inode was kept under a second name, and put back
    PLACED = "placed"  # a copy was made that has the number
    VIRTUAL = "virtual"  # the task's stat calls are answered with the recorded numbers
    FUSE = "fuse"  # a file system of ours shows the inode number alone: the device is another one
    NONE = "none"  # it sees other numbers


@dataclass(frozen=True, slots=True, kw_only=True)
class InodeOutcome:
    """What became of one file's identity at a restore.

    `recorded` is what the workload saw at the dump, `found` what the file has on this host, and `seen` what the
    restored workload really sees: asked from its side, before it ran on.
    """

    path: str
    recorded: Identity
    found: Identity
    seen: Identity
    method: InodeMethod


class Difference(StrEnum):
    """What of a recorded file is not as it was."""

    MISSING = "missing"
    NO_LOG = "no-log"
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
        if self.difference in (Difference.MISSING, Difference.NO_LOG):
            return f"{self.path} is missing"
        return f"{self.path}: {self.difference} was {self.recorded}, is {self.found}"


IDENTITY_DIFFERENCES = frozenset(
    {Difference.DEVICE, Difference.INODE, Difference.GENERATION, Difference.NO_LOG}
)
"""Differences in the numbers only: the content may be the same. A log that is missing is made anew."""
