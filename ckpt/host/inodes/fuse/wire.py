"""The structures that the kernel and a file system exchange on /dev/fuse, and only those that are needed here.

Rules: only the standard library is imported: the server's processes hold this module in their memory. What the
kernel writes is trusted in its form, and not in its values: the workload chose those.
Source: the kernel's include/uapi/linux/fuse.h, version 7.40 and above; fs/fuse/dev.c, fs/fuse/backing.c.
"""

from __future__ import annotations

import errno
import os
import struct
from enum import IntEnum
from typing import Final, NamedTuple

ROOT: Final = 1
"""The node of the file system's root directory."""

REQUEST_BYTES_MAX: Final = 128 * 1024
"""More than any request has: the longest is an extended attribute of 64 KiB."""

BACKING_OPEN: Final = 0x4010E501
"""FUSE_DEV_IOC_BACKING_OPEN: make an open file one that the kernel passes requests through to."""

BACKING: Final = struct.Struct("=iIQ")

_IN_HEADER: Final = struct.Struct("=IIQQIIII")
_OUT_HEADER: Final = struct.Struct("=IiQ")
_INIT_IN: Final = struct.Struct("=IIIII")
_INIT_OUT: Final = struct.Struct("=IIIIHHIIHHIIH22x")
_ATTR: Final = struct.Struct("=QQQQQQIIIIIIIIII")
_ATTR_OUT: Final = struct.Struct("=QII")
_ENTRY_OUT: Final = struct.Struct("=QQQQII")
_OPEN_OUT: Final = struct.Struct("=QIi")
_STATFS_OUT: Final = struct.Struct("=QQQQQIIII24x")
_SETATTR_IN: Final = struct.Struct("=I4xQQQQQQIIII4xII4x")
_XATTR_IN: Final = struct.Struct("=II")
_FSYNC_IN: Final = struct.Struct("=QI")
_FALLOCATE_IN: Final = struct.Struct("=QQQI")

_MAJOR: Final = 7
_MINOR: Final = 40
_POSIX_ACL: Final = 1 << 20
_INIT_EXT: Final = 1 << 30
_PASSTHROUGH: Final = 1 << 37
_HAS_RESEND: Final = 1 << 39
_WANTED: Final = _POSIX_ACL | _INIT_EXT | _PASSTHROUGH
_LEAST: Final = _INIT_EXT | _PASSTHROUGH | _HAS_RESEND
_STACK_DEPTH: Final = 2
"""As much as the kernel has (FILESYSTEM_MAX_STACK_DEPTH), so that a file may itself lie on an overlay."""

_MAX_WRITE: Final = 4096
_BACKGROUND: Final = 16
_FOREVER_S: Final = 1 << 32
_FOPEN_NOFLUSH: Final = 1 << 5
_FOPEN_PASSTHROUGH: Final = 1 << 7
_NOTIFY_RESEND: Final = 7
_U64: Final = (1 << 64) - 1
_U32: Final = (1 << 32) - 1
_SECOND: Final = 1_000_000_000


class Opcode(IntEnum):
    """What the kernel asks for."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    OPEN = 14
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    INIT = 26
    INTERRUPT = 36
    DESTROY = 38
    BATCH_FORGET = 42
    FALLOCATE = 43


UNANSWERED: Final = frozenset((Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.INTERRUPT))
"""Requests to which the kernel expects no answer."""


class Request(NamedTuple):
    """One request: `unique` is its number, `node` the file that it is about."""

    opcode: int
    unique: int
    node: int
    body: bytes


class Changes(NamedTuple):
    """What setattr is to change; None leaves a thing as it is. A time of -1 is now."""

    mode: int | None
    uid: int | None
    gid: int | None
    size: int | None
    atime_ns: int | None
    mtime_ns: int | None


def parse_request(packet: bytes) -> Request:
    """What one read of /dev/fuse gave."""
    _, opcode, unique, node, _, _, _, _ = _IN_HEADER.unpack_from(packet)
    return Request(opcode, unique, node, packet[_IN_HEADER.size :])


def answer(unique: int, content: bytes = b"", *, error: int = 0) -> bytes:
    """An answer to write to /dev/fuse; `error` is an errno."""
    return _OUT_HEADER.pack(_OUT_HEADER.size + len(content), -error, unique) + content


def resend() -> bytes:
    """A notice that lets the kernel give all requests again that were read and not answered."""
    return _OUT_HEADER.pack(_OUT_HEADER.size, _NOTIFY_RESEND, 0)


def init_out(body: bytes) -> bytes:
    """The answer to INIT.

    Raises:
        OSError: ENOTSUP: the kernel cannot pass through, or not give requests again.
    """
    major, _, readahead, flags, more = _INIT_IN.unpack_from(body.ljust(_INIT_IN.size, b"\0"))
    offered = flags | (more << 32 if flags & _INIT_EXT else 0)
    if major < _MAJOR or offered & _LEAST != _LEAST:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
    agreed = offered & _WANTED
    return _INIT_OUT.pack(
        *(_MAJOR, _MINOR, readahead, agreed & _U32),
        *(_BACKGROUND, _BACKGROUND, _MAX_WRITE, 1, 1, 0),
        *(agreed >> 32, _STACK_DEPTH, 0),
    )


def attributes(status: os.stat_result, number: int) -> bytes:
    """A file's attributes, under an inode number of its own."""
    times = [status.st_atime_ns, status.st_mtime_ns, status.st_ctime_ns]
    return _ATTR.pack(
        *(number, status.st_size, status.st_blocks),
        *((time // _SECOND) & _U64 for time in times),
        *(time % _SECOND for time in times),
        *(status.st_mode, status.st_nlink, status.st_uid, status.st_gid),
        *(0, status.st_blksize, 0),
    )


def attr_out(attributes: bytes) -> bytes:
    """The answer to GETATTR and SETATTR. Nothing of it may be kept: the file changes on other ways, too."""
    return _ATTR_OUT.pack(0, 0, 0) + attributes


def entry_out(node: int, attributes: bytes) -> bytes:
    """The answer to LOOKUP: a name leads to the same file for ever."""
    return _ENTRY_OUT.pack(node, 0, _FOREVER_S, 0, 0, 0) + attributes


def open_out(backing: int) -> bytes:
    """The answer to OPEN: all data goes to and comes from this backing file."""
    return _OPEN_OUT.pack(0, _FOPEN_PASSTHROUGH | _FOPEN_NOFLUSH, backing)


def statfs_out(space: os.statvfs_result) -> bytes:
    """The answer to STATFS."""
    return _STATFS_OUT.pack(
        *(space.f_blocks, space.f_bfree, space.f_bavail, space.f_files, space.f_ffree),
        *(space.f_bsize, space.f_namemax, space.f_frsize, 0),
    )


def xattr_out(value: bytes, size_max: int) -> bytes:
    """The answer to GETXATTR and LISTXATTR; a `size_max` of 0 asks for the size alone.

    Raises:
        OSError: ERANGE: it is longer than `size_max`.
    """
    if not size_max:
        return _XATTR_IN.pack(len(value), 0)
    if len(value) > size_max:
        raise OSError(errno.ERANGE, os.strerror(errno.ERANGE))
    return value


def parse_name(body: bytes) -> bytes:
    """The name in a request that has nothing else."""
    return body.partition(b"\0")[0]


def parse_getxattr(body: bytes) -> tuple[int, bytes]:
    """How many bytes there is room for, and the name; that is empty for LISTXATTR."""
    size, _ = _XATTR_IN.unpack_from(body)
    return size, parse_name(body[_XATTR_IN.size :])


def parse_setxattr(body: bytes) -> tuple[bytes, bytes, int]:
    """The name, the value, and the flags of setxattr(2)."""
    size, flags = _XATTR_IN.unpack_from(body)
    name, _, value = body[_XATTR_IN.size :].partition(b"\0")
    return name, value[:size], flags


def parse_fsync(body: bytes) -> bool:
    """Whether the data alone is to become durable, as by fdatasync(2)."""
    _, flags = _FSYNC_IN.unpack_from(body)
    return bool(flags & 1)


def parse_fallocate(body: bytes) -> tuple[int, int, int]:
    """Offset, length and mode of fallocate(2)."""
    _, offset, length, mode = _FALLOCATE_IN.unpack_from(body)
    return offset, length, mode


def parse_setattr(body: bytes) -> Changes:
    """What is to be changed; the change time is not: it is the file system's own."""
    valid, _, size, _, atime, mtime, _, atime_ns, mtime_ns, _, mode, uid, gid = _SETATTR_IN.unpack_from(body)

    def time(seconds: int, nanoseconds: int, *, is_set: int, is_now: int) -> int | None:
        if not valid & is_set:
            return None
        if valid & is_now:
            return -1
        # The seconds are signed, and travel as if they were not.
        return (seconds - (1 << 64) if seconds >> 63 else seconds) * _SECOND + nanoseconds

    return Changes(
        mode=mode if valid & 1 << 0 else None,
        uid=uid if valid & 1 << 1 else None,
        gid=gid if valid & 1 << 2 else None,
        size=size if valid & 1 << 3 else None,
        atime_ns=time(atime, atime_ns, is_set=1 << 4, is_now=1 << 7),
        mtime_ns=time(mtime, mtime_ns, is_set=1 << 5, is_now=1 << 8),
    )
