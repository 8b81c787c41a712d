"""Walk a path step by step, where the kernel's own walk would mean this process by "self".

openat2() refuses such paths with RESOLVE_NO_MAGICLINKS: those through /proc/self/fd/N, /dev/stdin and their like;
and where /proc shows another PID namespace, it finds no /proc/self at all.
Here /proc/self and /proc/thread-self are the task's, and the links in /proc/PID lead where they lead.
Rule: the caller stands in the task's root, so "/" and ".." are the task's, and has the task's rights. Only the
links of its own that a task may always follow, whatever its rights are, are opened with more.
Source: path_resolution(7), symlink(7), proc_pid_fd(5).
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from typing import Final

from ckpt.host.virtual.kernel import filesystem_type

_O_PATH: Final = os.O_PATH | os.O_CLOEXEC
_LINKS_MAX: Final = 40
_PROC_SUPER_MAGIC: Final = 0x9FA0
_PROC_ROOT_INODE: Final = 1
_SELF: Final = frozenset((b"self", b"thread-self"))
_OWN_LINKS: Final = frozenset((b"cwd", b"root", b"exe"))


def walk(path: bytes, base: int, own: Callable[[bytes], int], *, follow: bool) -> int:
    """A descriptor (O_PATH) of what the path means to a task.

    Args:
        path: The path, not empty.
        base: The directory that a relative path starts from; not used for an absolute one.
        own: Opens (O_PATH) a name in the task's own /proc/PID, with all rights.
        follow: Whether a symbolic link at the end is followed.

    Raises:
        OSError: there is no such file, or it is a link in /proc itself, which no table is about.
    """
    here = os.open("/", _O_PATH) if path.startswith(b"/") else os.dup(base)
    waiting = _names(path)
    directory = path.endswith((b"/", b"/."))
    links = 0
    try:
        while waiting:
            name = waiting.pop()
            there = os.open(name, _O_PATH | os.O_NOFOLLOW, dir_fd=here)
            if not stat.S_ISLNK(os.fstat(there).st_mode) or not (waiting or follow or directory):
                here = _instead(here, there)
                continue
            links += 1
            target = b""
            try:
                in_proc = filesystem_type(there) == _PROC_SUPER_MAGIC
                if not in_proc or name not in _SELF:  # that one leads nowhere for who is in no such namespace
                    target = os.readlink(b"", dir_fd=there)
            finally:
                os.close(there)
            _refuse_if(links > _LINKS_MAX)
            at_top = os.fstat(here).st_ino == _PROC_ROOT_INODE
            if in_proc and not at_top:
                # The links below /proc/PID lead to files themselves, not to names.
                here = _instead(here, os.open(name, _O_PATH, dir_fd=here))
            elif in_proc and name in _SELF:
                here = _instead(here, own(_taken(waiting)))
                _refuse_if(not (waiting or follow or directory))
            else:
                waiting += _names(target)
                if target.startswith(b"/"):
                    here = _instead(here, os.open("/", _O_PATH))
        if directory:
            os.close(os.open(b".", _O_PATH, dir_fd=here))  # ENOTDIR if it is none
    except BaseException:
        os.close(here)
        raise
    return here


def _names(path: bytes) -> list[bytes]:
    """The steps of a path, the last first."""
    return [name for name in path.split(b"/")[::-1] if name not in (b"", b".")]


def _taken(waiting: list[bytes]) -> bytes:
    """The name below /proc/self of the task's own link that the next steps are; they are taken. "." if they are none."""
    if waiting and waiting[-1] in _OWN_LINKS:
        return waiting.pop()
    if len(waiting) > 1 and waiting[-1] == b"fd" and waiting[-2] != b"..":
        return waiting.pop() + b"/" + waiting.pop()
    return b"."


def _instead(former: int, fd: int) -> int:
    os.close(former)
    return fd


def _refuse_if(condition: bool) -> None:  # noqa: FBT001
    if condition:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
