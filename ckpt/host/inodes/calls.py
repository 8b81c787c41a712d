"""The system calls that replacing files needs and Python lacks: openat2(2), renameat2(2), linkat(2), ioctls.

Rule: only the standard library is imported: the guardian, which takes changes back, has no other.
Source: openat2(2), renameat2(2), linkat(2), fallocate(2), ioctl_iflags(2), ioctl_ficlone(2), proc_pid_fdinfo(5).
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
from typing import Final

_AT_FDCWD: Final = -100
_AT_SYMLINK_FOLLOW: Final = 0x400
_OPENAT2: Final = 437
"""The number is the same on every architecture: the call came after the tables were joined."""

_OPEN_HOW: Final = struct.Struct("=QQQ")
_RESOLVE_NO_MAGICLINKS: Final = 0x02
_RESOLVE_NO_SYMLINKS: Final = 0x04
_RENAME_NOREPLACE: Final = 0x1
_RENAME_EXCHANGE: Final = 0x2
_FALLOC_FL_KEEP_SIZE: Final = 0x1
_FALLOC_FL_PUNCH_HOLE: Final = 0x2
_FS_IOC_GETFLAGS: Final = 0x80086601
_FS_IOC_SETFLAGS: Final = 0x40086602
_FICLONE: Final = 0x40049409
_FDINFO_BYTES_MAX: Final = 4096
_U32: Final = struct.Struct("=I")

_libc: Final = ctypes.CDLL(None, use_errno=True)


def open_without_links(path: str, flags: int) -> int:
    """Open an absolute path in which no component may be a symbolic link.

    Raises:
        OSError: ELOOP where one is.
    """
    how = _OPEN_HOW.pack(flags | os.O_CLOEXEC, 0, _RESOLVE_NO_SYMLINKS | _RESOLVE_NO_MAGICLINKS)
    return _check(_libc.syscall(_OPENAT2, _AT_FDCWD, os.fsencode(path), how, len(how)), path)


def link_at(fd: int, directory: int, name: str) -> None:
    """Give an open file the name `name` in an open directory; the descriptor may be O_PATH or O_TMPFILE."""
    origin = b"/proc/self/fd/%d" % fd
    _check(_libc.linkat(_AT_FDCWD, origin, directory, os.fsencode(name), _AT_SYMLINK_FOLLOW), name)


def exchange(directory: int, one: str, other: str) -> None:
    """Let two names in an open directory change places, in one step.

    Raises:
        OSError: EINVAL where the file system cannot; ENOENT where one is missing.
    """
    _rename(directory, one, other, _RENAME_EXCHANGE)


def rename_new(directory: int, old: str, new: str) -> None:
    """Rename within an open directory.

    Raises:
        OSError: EEXIST where the new name is taken.
    """
    _rename(directory, old, new, _RENAME_NOREPLACE)


def punch_hole(fd: int, start: int, size: int) -> None:
    """Let `size` bytes from `start` be a hole; the file stays as long as it is.

    Raises:
        OSError: EOPNOTSUPP where the file system has no holes.
    """
    mode = _FALLOC_FL_PUNCH_HOLE | _FALLOC_FL_KEEP_SIZE
    _check(_libc.fallocate(fd, mode, ctypes.c_long(start), ctypes.c_long(size)))


def clone(source: int, target: int) -> None:
    """Let `target` share all content of `source`; it does not become shorter.

    Raises:
        OSError: EOPNOTSUPP, EXDEV or EINVAL where the file system cannot.
    """
    fcntl.ioctl(target, _FICLONE, source)


def inode_flags(fd: int) -> int:
    """The flags that chattr(1) shows; 0 where the file system has none."""
    try:
        answer = fcntl.ioctl(fd, _FS_IOC_GETFLAGS, bytes(8))
    except OSError:
        return 0
    (flags,) = _U32.unpack_from(answer)
    return int(flags)


def set_inode_flags(fd: int, flags: int) -> None:
    """Set the flags that chattr(1) sets.

    Raises:
        OSError: the file system has not all of them.
    """
    fcntl.ioctl(fd, _FS_IOC_SETFLAGS, _U32.pack(flags) + bytes(4))


def mount_id(fd: int) -> int:
    """The mount through which a file was opened; -1 where the kernel does not tell."""
    file = os.open(f"/proc/self/fdinfo/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        text = os.read(file, _FDINFO_BYTES_MAX)
    finally:
        os.close(file)
    _, found, rest = text.partition(b"mnt_id:")
    return int(rest.partition(b"\n")[0]) if found else -1


def _rename(directory: int, old: str, new: str, flags: int) -> None:
    _check(_libc.renameat2(directory, os.fsencode(old), directory, os.fsencode(new), flags), new)


def _check(result: int, subject: str | None = None) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), subject)
    return result
