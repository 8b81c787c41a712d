"""What the kernel's requests do to the files beneath, and what is answered.

Rules:
- Nothing is remembered between two requests, and each may be done twice: the process that reads a request may die
  before it answers, and the other one is given it again.
- What is not known here is not implemented (ENOSYS): the kernel then does without, or says so to the program.
- Only the standard library is imported: the server's processes hold this module in their memory.
Source: libfuse's documentation of its low-level operations; the kernel's Documentation/filesystems/fuse-passthrough.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import time
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from ckpt.host.inodes.fuse import wire
from ckpt.host.inodes.fuse.wire import ROOT, UNANSWERED, Opcode, Request

_libc: Final = ctypes.CDLL(None, use_errno=True)


class Shown(NamedTuple):
    """A file and the inode number that it is shown under; `fd` is open for reading."""

    fd: int
    number: int


class Answers:
    """The files of one file system: the first is the node after the root."""

    def __init__(self, fuse: int, files: Sequence[Shown]) -> None:
        """Show these files through an open /dev/fuse that is mounted."""
        self._fuse = fuse
        self._files = {ROOT + 1 + index: file for index, file in enumerate(files)}
        self._backing: dict[int, int] = {}
        self.is_agreed = False
        self._calls: dict[int, Callable[[Request], bytes]] = {
            Opcode.LOOKUP: self._lookup,
            Opcode.GETATTR: lambda request: wire.attr_out(self._attributes(request.node)),
            Opcode.SETATTR: self._setattr,
            Opcode.OPEN: lambda request: wire.open_out(self._backing[request.node]),
            Opcode.STATFS: lambda request: wire.statfs_out(os.fstatvfs(self._fd(request))),
            Opcode.RELEASE: lambda _: b"",
            Opcode.FSYNC: self._fsync,
            Opcode.SETXATTR: self._setxattr,
            Opcode.GETXATTR: self._getxattr,
            Opcode.LISTXATTR: self._listxattr,
            Opcode.REMOVEXATTR: self._removexattr,
            Opcode.INIT: self._init,
            Opcode.DESTROY: lambda _: b"",
            Opcode.FALLOCATE: self._fallocate,
        }

    def register(self) -> None:
        """Let the kernel pass requests through to the files; possible as soon as INIT is answered.

        Raises:
            OSError: it will not: it lacks passthrough, or a file lies on what cannot be stacked upon.
        """
        for node, file in self._files.items():
            # Only with a buffer that it may write to, ioctl() gives the number that the kernel returned.
            self._backing[node] = fcntl.ioctl(
                self._fuse, wire.BACKING_OPEN, bytearray(wire.BACKING.pack(file.fd, 0, 0))
            )

    def answer(self, packet: bytes) -> int:
        """Do what one request asks for, and answer it; gives its opcode."""
        request = wire.parse_request(packet)
        if request.opcode in UNANSWERED:
            return request.opcode
        try:
            content = wire.answer(request.unique, self._calls.get(request.opcode, _not_there)(request))
        except OSError as error:
            content = wire.answer(request.unique, error=error.errno or errno.EIO)
        except (KeyError, ValueError, OverflowError):
            content = wire.answer(request.unique, error=errno.EINVAL)
        try:
            os.write(self._fuse, content)
        except OSError as error:
            # The task that asked was killed meanwhile, or the file system is gone: the next read tells.
            if error.errno not in (errno.ENOENT, errno.ENODEV):
                raise
        return request.opcode

    def _init(self, request: Request) -> bytes:
        content = wire.init_out(request.body)
        self.is_agreed = True
        return content

    def _fd(self, request: Request) -> int:
        return self._files[request.node].fd

    def _lookup(self, request: Request) -> bytes:
        """Names are the nodes in decimal; nobody but who binds them over their paths ever looks one up."""
        node = int(wire.parse_name(request.body))
        if request.node != ROOT or node not in self._files:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        return wire.entry_out(node, self._attributes(node))

    def _attributes(self, node: int) -> bytes:
        if node == ROOT:
            return wire.attributes(os.stat("/"), ROOT)
        file = self._files[node]
        return wire.attributes(os.fstat(file.fd), file.number)

    def _setattr(self, request: Request) -> bytes:
        fd, changes = self._fd(request), wire.parse_setattr(request.body)
        # The owner first, for a change of it takes the set-user-ID bit away.
        if changes.uid is not None or changes.gid is not None:
            os.fchown(
                fd, -1 if changes.uid is None else changes.uid, -1 if changes.gid is None else changes.gid
            )
        if changes.mode is not None:
            os.fchmod(fd, changes.mode & 0o7777)
        if changes.size is not None:
            self._at_writable(fd, lambda writable: os.ftruncate(writable, changes.size or 0))
        if changes.atime_ns is not None or changes.mtime_ns is not None:
            status, now = os.fstat(fd), time.time_ns()
            os.utime(
                fd,
                ns=(
                    _time(changes.atime_ns, now, status.st_atime_ns),
                    _time(changes.mtime_ns, now, status.st_mtime_ns),
                ),
            )
        return wire.attr_out(self._attributes(request.node))

    def _fsync(self, request: Request) -> bytes:
        (os.fdatasync if wire.parse_fsync(request.body) else os.fsync)(self._fd(request))
        return b""

    def _fallocate(self, request: Request) -> bytes:
        offset, length, mode = wire.parse_fallocate(request.body)

        def allocate(writable: int) -> None:
            if _libc.fallocate(writable, mode, ctypes.c_long(offset), ctypes.c_long(length)):
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number))

        self._at_writable(self._fd(request), allocate)
        return b""

    def _setxattr(self, request: Request) -> bytes:
        name, value, flags = wire.parse_setxattr(request.body)
        os.setxattr(self._fd(request), name, value, flags)
        return b""

    def _getxattr(self, request: Request) -> bytes:
        size, name = wire.parse_getxattr(request.body)
        return wire.xattr_out(os.getxattr(self._fd(request), name), size)

    def _listxattr(self, request: Request) -> bytes:
        size, _ = wire.parse_getxattr(request.body)
        names = os.listxattr(self._fd(request))
        return wire.xattr_out(b"".join(os.fsencode(name) + b"\0" for name in names), size)

    def _removexattr(self, request: Request) -> bytes:
        os.removexattr(self._fd(request), wire.parse_name(request.body))
        return b""

    def _at_writable(self, fd: int, act: Callable[[int], object]) -> None:
        # Open for this moment only: a file that is open for writing cannot be executed.
        writable = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_CLOEXEC)
        try:
            act(writable)
        finally:
            os.close(writable)


def _not_there(_: Request) -> bytes:
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))


def _time(wanted: int | None, now: int, kept: int) -> int:
    if wanted is None:
        return kept
    return now if wanted < 0 else wanted
