"""Copies of files that may have holes: holes cost neither time nor space.

Rules: copy_frozen() is quick, for the time of a freeze: a clone where the file system can, else only what is
there. fill() takes blocks of zeros for holes: a file that came out of a store has none of its own.
Source: lseek(2), SEEK_DATA; ioctl_ficlone(2).
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

_FICLONE: Final = 0x40049409
_BLOCK_BYTES: Final = 1 << 16
_ZEROS: Final = bytes(_BLOCK_BYTES)


def copy_frozen(source: int, size: int, copy: str) -> None:
    """Copy the first `size` bytes of an open file to the new file `copy`, which is exactly so long.

    Raises:
        OSError: there is no space, or `copy` exists.
    """
    target = os.open(copy, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with suppress(OSError):
            fcntl.ioctl(target, _FICLONE, source)
            os.ftruncate(target, size)
            return
        for start, end in data_in(source, size):
            _send(source, target, start, end)
        os.ftruncate(target, size)
    finally:
        os.close(target)


def data_in(source: int, size: int) -> Iterator[tuple[int, int]]:
    """From where to where the first `size` bytes of an open file are no holes; its position moves.

    Raises:
        OSError: it cannot be read.
    """
    at = 0
    while at < size:
        try:
            at = os.lseek(source, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # a hole up to the end
                return
            raise
        if at >= size:
            return
        end = os.lseek(source, at, os.SEEK_HOLE)
        yield at, min(size, end)
        at = end


def fill(target: int, copy: str) -> None:
    """Make an empty open file's content that of `copy`.

    Raises:
        OSError: there is no space.
    """
    with open(copy, "rb") as source:
        at = 0
        while block := source.read(_BLOCK_BYTES):
            if block != _ZEROS[: len(block)]:
                written = 0
                while written < len(block):
                    written += os.pwrite(target, block[written:], at + written)
            at += len(block)
    os.ftruncate(target, at)


def _send(source: int, target: int, start: int, end: int) -> None:
    os.lseek(target, start, os.SEEK_SET)
    while start < end:
        count = os.sendfile(target, source, start, end - start)
        if count == 0:  # somebody outside cut it short
            break
        start += count
