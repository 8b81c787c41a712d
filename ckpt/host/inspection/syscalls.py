"""The system calls about files that Python's os module lacks: statx(2), file handles, an ioctl.

They stand apart from ckpt.host.linux because the shim of every job holds that module in its memory.
Source: statx(2), open_by_handle_at(2), linkat(2); FS_IOC_GETFSUUID in <linux/fs.h>.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
from typing import Final, NamedTuple

AT_FDCWD: Final = -100
AT_SYMLINK_FOLLOW: Final = 0x400

_STATX_BTIME: Final = 0x800
_STATX_MNT_ID: Final = 0x1000
_STATX_BYTES: Final = 256
_HANDLE_BYTES_MAX: Final = 128
_HANDLE_HEAD: Final = struct.Struct("=Ii")
_U32: Final = struct.Struct("=I")
_U64: Final = struct.Struct("=Q")
_TIMESTAMP: Final = struct.Struct("=qI")
_FS_IOC_GETFSUUID: Final = 0x80111500

_libc: Final = ctypes.CDLL(None, use_errno=True)


class Statx(NamedTuple):
    """What statx(2) adds to stat(2); None and -1 where the file system or the kernel does not tell."""

    btime_ns: int | None
    mount_id: int


def statx(path: str) -> Statx:
    """The time of birth of a file, and the mount that the path leads to."""
    buffer = ctypes.create_string_buffer(_STATX_BYTES)
    _check(
        _libc.statx(AT_FDCWD, os.fsencode(path), 0, _STATX_BTIME | _STATX_MNT_ID, ctypes.byref(buffer)), path
    )
    (mask,) = _U32.unpack_from(buffer, 0)
    seconds, nanoseconds = _TIMESTAMP.unpack_from(buffer, 80)
    (mount_id,) = _U64.unpack_from(buffer, 144)
    return Statx(
        btime_ns=seconds * 10**9 + nanoseconds if mask & _STATX_BTIME else None,
        mount_id=mount_id if mask & _STATX_MNT_ID else -1,
    )


def file_handle(path: str) -> tuple[int, bytes]:
    """The type and the bytes of a file's handle, by which it is found again whatever its name.

    Raises:
        OSError: EOPNOTSUPP where the file system has none.
    """
    buffer = ctypes.create_string_buffer(_HANDLE_HEAD.size + _HANDLE_BYTES_MAX)
    _HANDLE_HEAD.pack_into(buffer, 0, _HANDLE_BYTES_MAX, 0)
    mount_id = ctypes.c_int()
    _check(
        _libc.name_to_handle_at(
            AT_FDCWD, os.fsencode(path), ctypes.byref(buffer), ctypes.byref(mount_id), AT_SYMLINK_FOLLOW
        ),
        path,
    )
    size, kind = _HANDLE_HEAD.unpack_from(buffer, 0)
    return kind, buffer.raw[_HANDLE_HEAD.size : _HANDLE_HEAD.size + size]


def open_by_handle(mount_fd: int, kind: int, handle: bytes, flags: int) -> int:
    """Open the file that has this handle on the file system of `mount_fd`.

    Raises:
        OSError: ESTALE where there is no such file any more.
    """
    buffer = ctypes.create_string_buffer(_HANDLE_HEAD.pack(len(handle), kind) + handle)
    return _check(_libc.open_by_handle_at(mount_fd, ctypes.byref(buffer), flags | os.O_CLOEXEC))


def link_open_file(fd: int, path: str) -> None:
    """Give an open file one more name; unlike os.link() this follows /proc/self/fd."""
    _check(
        _libc.linkat(AT_FDCWD, b"/proc/self/fd/%d" % fd, AT_FDCWD, os.fsencode(path), AT_SYMLINK_FOLLOW),
        path,
    )


def filesystem_uuid(fd: int) -> str:
    """The file system's UUID as 32 hexadecimal digits; "" where the kernel does not tell (before 6.9)."""
    try:
        answer = fcntl.ioctl(fd, _FS_IOC_GETFSUUID, bytes(17))
    except OSError:
        return ""
    return answer[1 : 1 + min(answer[0], 16)].hex()


def _check(result: int, subject: str | None = None) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), subject)
    return result
