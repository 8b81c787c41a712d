"""Where a recorded path leads: its directory and the file in it, opened so that nobody is led astray.

Rules:
- A path comes from a checkpoint, which may lie: it is absolute and plain, and no symbolic link is followed.
- A file may change only while nobody else has it open: a write lease is held on it meanwhile. Whoever opens
  it then waits; the lease tells, and the change is taken back.
Source: openat2(2), fcntl(2) "Leases"; fs/locks.c, check_conflicting_open().
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Final

from ckpt.host.inodes import calls
from ckpt.host.inodes.moved import identity_of

PATH_BYTES_MAX: Final = 4096


class Refused(Exception):
    """It cannot be done, and the text says why; it never leaves this package."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """An open directory and a name in it."""

    path: str
    directory: int
    name: str

    @property
    def directory_path(self) -> str:
        """The path of the directory."""
        return os.path.dirname(self.path)

    @property
    def mount(self) -> tuple[int, int]:
        """The device and the mount of the directory: a hard link reaches no further than both."""
        return mount_of(self.directory)

    def status(self) -> os.stat_result:
        """What lstat(2) says of the file.

        Raises:
            OSError: there is none.
        """
        return os.stat(self.name, dir_fd=self.directory, follow_symlinks=False)

    def exists(self) -> bool:
        """Whether there is anything of this name."""
        with suppress(FileNotFoundError):
            self.status()
            return True
        return False

    def make_unnamed(self) -> int:
        """A new file without a name, open for reading and writing: it goes with its descriptor.

        Raises:
            OSError: there is no space, it may not be written to, or the file system has no such files.
        """
        return os.open(".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600, dir_fd=self.directory)

    @contextmanager
    def unnamed(self) -> Iterator[int]:
        """What make_unnamed() makes; closed at the end, and gone if it was given no name.

        Raises:
            OSError: as make_unnamed().
        """
        fd = self.make_unnamed()
        try:
            yield fd
        finally:
            os.close(fd)

    @contextmanager
    def opened(self, flags: int) -> Iterator[int]:
        """The regular file, open; neither a link is followed nor a FIFO waited for.

        Raises:
            OSError: it cannot be opened.
        """
        fd = os.open(self.name, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=self.directory)
        try:
            yield fd
        finally:
            os.close(fd)

    def names_of(self, status: os.stat_result) -> list[str]:
        """All names that the file has in this directory."""
        with os.scandir(self.directory) as entries:
            candidates = [entry.name for entry in entries if entry.inode() == status.st_ino]
        return [name for name in candidates if self._leads_to(name, status)]

    def _leads_to(self, name: str, status: os.stat_result) -> bool:
        with suppress(OSError):
            found = os.stat(name, dir_fd=self.directory, follow_symlinks=False)
            return identity_of(found) == identity_of(status)
        return False


@contextmanager
def opened_place(path: str) -> Iterator[Place]:
    """The place that a path names.

    Raises:
        Refused: the path is not absolute and plain, or has a symbolic link in it.
        OSError: the directory cannot be opened.
    """
    name = os.path.basename(path)
    if not is_plain(path):
        raise Refused("its path is not absolute and plain")
    try:
        directory = calls.open_without_links(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise Refused("its path leads through a symbolic link") from error
        raise
    try:
        yield Place(path=path, directory=directory, name=name)
    finally:
        os.close(directory)


def is_plain(path: str) -> bool:
    """Whether the path is absolute, names a file, and has neither "..", nor "." nor "//" in it."""
    return (
        path.startswith("/")
        and not path.startswith("//")
        and path != "/"
        and "\0" not in path
        and os.path.normpath(path) == path
        and len(os.fsencode(path)) < PATH_BYTES_MAX
    )


def mount_of(fd: int) -> tuple[int, int]:
    """The device of an open file, and the mount through which it was opened."""
    return (os.fstat(fd).st_dev, calls.mount_id(fd))


class Lease:
    """A write lease on an open file: proof that nobody else had it open, and has not opened it since."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def check(self) -> None:
        """Nothing, if the lease still holds.

        Raises:
            Refused: somebody has opened the file, and waits.
        """
        if fcntl.fcntl(self._fd, fcntl.F_GETLEASE) != fcntl.F_WRLCK:
            raise Refused("somebody opened it meanwhile")


@contextmanager
def held_alone(fd: int) -> Iterator[Lease]:
    """Hold a write lease on a regular file that only `fd` has open.

    Raises:
        Refused: it is open elsewhere, or the file system cannot tell.
    """
    # SIGURG is ignored unless a handler is set; the usual SIGIO would end this process.
    fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EBUSY):
            raise Refused("another process has it open") from error
        raise Refused(f"it cannot be known whether it is open elsewhere: {error.strerror}") from error
    try:
        yield Lease(fd)
    finally:
        with suppress(OSError):
            fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)


def is_written_elsewhere(fd: int) -> bool:
    """Whether somebody else has the file of a read-only descriptor open for writing, or that cannot be known."""
    fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError:
        return True
    return False
