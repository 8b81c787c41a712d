"""Where an archive is: a file, a pipe, or the standard streams, which are called "-".

Rules: a file is written beside its place and renamed when it is whole and durable: whoever finds it, finds all
of it. What is there already and no regular file (a pipe, a device) is written to as it is.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final, NoReturn

from ckpt.errors import NoSpace, OsRefused
from ckpt.store.refused import FULL, no_space

STANDARD: Final = "-"

Read = Callable[[int], bytes]
Write = Callable[[bytes], object]


@contextmanager
def reading(place: str) -> Iterator[Read]:
    """A function that gives at most as many bytes of the place as it is asked for, none at its end.

    Raises:
        OsRefused: it cannot be read.
    """
    if place == STANDARD:
        yield _converting_read(sys.stdin.fileno(), "the standard input")
        return
    try:
        fd = os.open(place, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        _refuse("read", place, error)
    try:
        yield _converting_read(fd, place)
    finally:
        os.close(fd)


@contextmanager
def writing(place: str) -> Iterator[Write]:
    """A function that writes all of what it is given; if the body fails, a file is left as it was.

    Raises:
        OsRefused: it cannot be written.
        NoSpace: its file system is full.
        BrokenPipeError: nobody reads the standard output any more.
    """
    if place == STANDARD:
        # Whoever has ended is told by the program itself, as for everything on standard output.
        yield lambda content: _write_all(sys.stdout.fileno(), content)
    elif os.path.exists(place) and not stat.S_ISREG(os.stat(place).st_mode):
        with _open(place, os.O_WRONLY) as fd:
            yield _converting_write(fd, place)
    else:
        with _replacing(os.path.realpath(place)) as fd:
            yield _converting_write(fd, place)


@contextmanager
def _replacing(path: str) -> Iterator[int]:
    temporary = f"{path}.{os.getpid()}.partial"
    try:
        with _open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL) as fd:
            yield fd
            try:
                os.fsync(fd)
                os.rename(temporary, path)
                _sync(os.path.dirname(path))
            except OSError as error:
                _refuse("write", path, error)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise


@contextmanager
def _open(path: str, flags: int) -> Iterator[int]:
    try:
        fd = os.open(path, flags | os.O_CLOEXEC, 0o600)
    except OSError as error:
        _refuse("write", path, error)
    try:
        yield fd
    finally:
        os.close(fd)


def _sync(directory: str) -> None:
    # rename(2) is atomic but not durable until the directory is.
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _converting_read(fd: int, place: str) -> Read:
    def read(count: int) -> bytes:
        try:
            return os.read(fd, count)
        except OSError as error:
            _refuse("read", place, error)

    return read


def _converting_write(fd: int, place: str) -> Write:
    def write(content: bytes) -> None:
        try:
            _write_all(fd, content)
        except OSError as error:
            _refuse("write", place, error)

    return write


def _write_all(fd: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(fd, view) :]


def _refuse(operation: str, place: str, error: OSError) -> NoReturn:
    if error.errno in FULL:
        full: NoSpace = no_space(os.path.dirname(os.path.abspath(place)), 0)
        full.option = "another FILE"
        raise full from error
    raise OsRefused(operation=operation, subject=place, reason=error.strerror or str(error)) from error
