"""Files with secrets, and files that decide whom this host trusts.

Rule: what somebody else could have written is refused, and so is a secret that others can read: never used in
silence, and never mended in silence either, since it may have been read or changed already.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

from ckpt.errors import CkptError, OsRefused
from ckpt.store.local import sync_new_directory
from ckpt.store.refused import FULL, no_space

FILE_MODE: Final = 0o600
DIRECTORY_MODE: Final = 0o700

_WRITABLE: Final = stat.S_IWGRP | stat.S_IWOTH
_ACCESSIBLE: Final = stat.S_IRWXG | stat.S_IRWXO
_SPACE_BYTES: Final = 4096


def read_guarded(path: str, *, bytes_max: int) -> bytes | None:
    """The content of a regular file that only its owner, this user or root, may write; None if there is none.

    Raises:
        OsRefused: others may write to it or to its directory, or it cannot be read, or is longer.
    """
    return _read(path, _WRITABLE, bytes_max)


def read_secret(path: str, *, bytes_max: int) -> bytes | None:
    """The same, of a file that only its owner may read; raises the same."""
    return _read(path, _ACCESSIBLE, bytes_max)


def make_directory(path: str) -> None:
    """Make a directory that only its owner may enter, unless it is there; and those above it, as usual.

    Raises:
        OsRefused, NoSpace: it cannot be made, or others may write to the one that is there.
    """
    with converted("make", path):
        if not os.path.isdir(path):
            os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
            with suppress(FileExistsError):
                os.mkdir(path, DIRECTORY_MODE)
            sync_new_directory(path)
        check_owner(path, os.stat(path), _WRITABLE)


def create(path: str, content: bytes) -> None:
    """Write a new file with mode 0600; it is durable when this returns.

    Raises:
        OsRefused: there is one already, or it cannot be written.
        NoSpace: it does not fit.
    """
    with converted("make", path):
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)
        try:
            with open(fd, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(fd)
            # fsync(2) on the file alone does not make its name durable.
            sync_new_directory(os.path.dirname(os.path.abspath(path)))
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(path)
            raise


def replace(path: str, content: bytes) -> None:
    """Give a file this content: after a crash it has the former or this. One process at a time may do it.

    Raises:
        OsRefused, NoSpace: it cannot be written.
    """
    temporary = f"{path}.new"
    with converted("write", path):
        # Whoever wrote it has died: writers take turns.
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        create(temporary, content)
        os.rename(temporary, path)
        # rename(2) is atomic, but not durable before the directory is.
        sync_new_directory(os.path.dirname(os.path.abspath(path)))


def check_secret(path: str, found: os.stat_result) -> None:
    """Refuse a secret that belongs to somebody else, or that others may read.

    Raises:
        OsRefused: it is so.
    """
    check_owner(path, found, _ACCESSIBLE)


def check_owner(path: str, found: os.stat_result, forbidden: int) -> None:
    """Refuse what belongs to neither root nor this user, or gives others one of the forbidden rights.

    Raises:
        OsRefused: it is so.
    """
    if found.st_uid not in {0, os.geteuid()}:
        raise OsRefused(
            operation="trust",
            subject=path,
            reason=f"it belongs to uid {found.st_uid}, who could have changed it",
            remedy=f"Look at what is in it, then: chown {os.geteuid()} {path}",
        )
    if found.st_mode & forbidden:
        may, right = ("write to", "go-w") if found.st_mode & _WRITABLE else ("read", "go-r")
        raise OsRefused(
            operation="trust",
            subject=path,
            reason=f"others may {may} it (mode {stat.S_IMODE(found.st_mode):04o})",
            remedy=f"Look at what is in it, then: chmod {'go-rwx' if forbidden == _ACCESSIBLE else right} {path}",
        )


@contextmanager
def converted(operation: str, path: str) -> Iterator[None]:
    """Turn an OSError of the body into OsRefused or NoSpace."""
    try:
        yield
    except OSError as error:
        raise _refusal(operation, path, error) from error


def _refusal(operation: str, path: str, error: OSError) -> CkptError:
    if error.errno in FULL:
        full = no_space(os.path.dirname(os.path.abspath(path)), _SPACE_BYTES)
        full.option = "CKPT_KEYS for the keys of this host"
        return full
    remedy = "Run ckpt as root." if error.errno in {errno.EACCES, errno.EPERM} and os.geteuid() else ""
    return OsRefused(operation=operation, subject=path, reason=os.strerror(error.errno or 0), remedy=remedy)


def _read(path: str, forbidden: int, bytes_max: int) -> bytes | None:
    with converted("read", path):
        folder = os.path.dirname(os.path.abspath(path))
        try:
            directory = os.stat(folder)
            # Not to wait for ever where somebody put a FIFO.
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            return None
        with open(fd, "rb") as file:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode):
                raise OsRefused(operation="read", subject=path, reason="it is not a regular file")
            # Who may write to the directory may put another file in the place of this one.
            check_owner(folder, directory, _WRITABLE)
            check_owner(path, found, forbidden)
            content = file.read(bytes_max + 1)
    if len(content) > bytes_max:
        raise OsRefused(operation="read", subject=path, reason=f"it is longer than {bytes_max} bytes")
    return content
