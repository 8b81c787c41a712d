"""The door to libc: the system calls that Python's os module lacks.

Rules: each function raises OSError with the errno and, where there is one, the path. Nothing but the standard
library is imported: the shim of every running job holds this module in its memory.
Source: the man pages of section 2; the numbers are from <sched.h>, <sys/mount.h>, <sys/prctl.h>,
<sys/inotify.h>, which are the same on every architecture that Debian releases for.
"""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress

CLONE_NEWNS = 0x00020000
CLONE_NEWIPC = 0x08000000
CLONE_NEWNET = 0x40000000
CLONE_NEWPID = 0x20000000

MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 1 << 18
MNT_DETACH = 0x2

IN_CREATE = 0x00000100
IN_MOVED_TO = 0x00000080
IN_DELETE_SELF = 0x00000400

_PR_SET_NAME = 15
_PR_SET_CHILD_SUBREAPER = 36

_SYS_PIDFD_GETFD = 438  # on every architecture

_SYS_PIDFD_GETFD = 438  # on every architecture

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = (
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_ulong,
    ctypes.c_char_p,
)
_libc.prctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong)


def _check(result: int, subject: str | None = None) -> int:
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), subject)
    return result


def unshare(flags: int) -> None:
    """Leave the namespaces that the flags name for new ones; CLONE_NEWPID takes effect in the next child."""
    _check(_libc.unshare(flags))


def setns(fd: int, flags: int) -> None:
    """Enter the namespaces that the flags name, of the process or namespace that `fd` refers to."""
    _check(_libc.setns(fd, flags))


def mount(source: str, target: str, filesystem: str = "", *, flags: int = 0, options: str = "") -> None:
    """Mount a file system, or change a mount, as the flags say."""
    _check(
        _libc.mount(
            os.fsencode(source),
            os.fsencode(target),
            os.fsencode(filesystem) or None,
            flags,
            os.fsencode(options) or None,
        ),
        target,
    )


def umount(target: str, *, flags: int = 0) -> None:
    """Take a mount away; MNT_DETACH also takes one that is busy, and those below it."""
    _check(_libc.umount2(os.fsencode(target), flags), target)


def make_mounts_private() -> None:
    """Cut every mount of this mount namespace off from its peers: nothing propagates in or out."""
    mount("none", "/", flags=MS_REC | MS_PRIVATE)


def become_subreaper() -> None:
    """From now on orphans among this process's descendants become its children."""
    _check(_libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0))


def set_process_name(name: str) -> None:
    """Set what ps(1) shows in its `comm` column; at most 15 bytes are kept."""
    buffer = ctypes.create_string_buffer(os.fsencode(name)[:15])
    _check(_libc.prctl(_PR_SET_NAME, ctypes.addressof(buffer), 0, 0, 0))


def inotify_open(path: str, mask: int) -> int:
    """A file descriptor that becomes readable when one of the events of `mask` happens to `path`."""
    fd = _check(_libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK))
    try:
        _check(_libc.inotify_add_watch(fd, os.fsencode(path), mask), path)
    except OSError:
        os.close(fd)
        raise
    return fd


def inotify_drain(fd: int) -> None:
    """Take the events that wait at `fd`, so that it is readable again only at the next one."""
    with suppress(BlockingIOError):
        os.read(fd, 64 * 1024)


def pidfd_getfd(pidfd: int, fd: int) -> int:
    """A duplicate of the descriptor `fd` of the process behind `pidfd`; the man page is in section 2."""
    return _check(_libc.syscall(_SYS_PIDFD_GETFD, pidfd, fd, 0))
