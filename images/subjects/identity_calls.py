"""Every way to ask for the device and inode number of a file, and the numbers that were given before.

Rule: a number is remembered once, at the start; whatever a later call gives is compared with that.
Source: stat(2), statx(2), <linux/stat.h>; the numbers of newfstatat are those of x86-64 and of aarch64.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from collections.abc import Callable
from typing import NamedTuple

LIBC = ctypes.CDLL(None, use_errno=True)
NEWFSTATAT = {"x86_64": 262, "aarch64": 79}.get(platform.machine())
AT_FDCWD, AT_EMPTY_PATH = -100, 0x1000
STATX_BASIC = 0x7FF
# Of struct statx: stx_ino, stx_dev_major, stx_dev_minor.
STATX_INO, STATX_DEV, STATX_BYTES = struct.Struct("=32xQ"), struct.Struct("=136xII"), 256
# Of struct stat: st_dev, st_ino; both 64 bits, and first, on both architectures.
STAT_INO, STAT_BYTES = struct.Struct("=QQ"), 144


class Identity(NamedTuple):
    """What tells two files apart."""

    device: int
    inode: int

    def __str__(self) -> str:
        return f"{os.major(self.device)}:{os.minor(self.device)} {self.inode}"


class Finding(NamedTuple):
    """One property: what it was or must be, and what it is."""

    name: str
    of: str
    was: str
    now: str

    @property
    def right(self) -> bool:
        return self.was == self.now


def of_status(status: os.stat_result) -> Identity:
    return Identity(status.st_dev, status.st_ino)


def by_statx(fd: int, path: str, flags: int) -> Identity:
    buffer = ctypes.create_string_buffer(STATX_BYTES)
    if LIBC.statx(fd, os.fsencode(path), flags, STATX_BASIC, buffer):
        raise OSError(ctypes.get_errno(), "statx", path)
    (inode,) = STATX_INO.unpack_from(buffer)
    return Identity(os.makedev(*STATX_DEV.unpack_from(buffer)), inode)


def by_syscall(path: str) -> Identity:
    """Without libc's own code for it, as programs in Go do."""
    buffer = ctypes.create_string_buffer(STAT_BYTES)
    if LIBC.syscall(NEWFSTATAT, AT_FDCWD, os.fsencode(path), buffer, 0):
        raise OSError(ctypes.get_errno(), "newfstatat", path)
    return Identity(*STAT_INO.unpack_from(buffer))


def by_listing(path: str) -> Identity:
    """Only the inode number: a directory's entries have no device."""
    folder, name = os.path.split(path)
    with os.scandir(folder or ".") as entries:
        return Identity(0, next(entry.inode() for entry in entries if entry.name == name))


def by_directory(path: str) -> Identity:
    folder, name = os.path.split(path)
    fd = os.open(folder or ".", os.O_PATH | os.O_DIRECTORY)
    try:
        return of_status(os.stat(name, dir_fd=fd))
    finally:
        os.close(fd)


OF_PATHS: dict[str, Callable[[str], Identity]] = {
    "stat": lambda path: of_status(os.stat(path)),
    "lstat": lambda path: of_status(os.lstat(path)),
    "fstatat": by_directory,
    "statx": lambda path: by_statx(AT_FDCWD, path, 0),
    "listing": by_listing,
    **({"system call": by_syscall} if NEWFSTATAT else {}),
}
OF_DESCRIPTORS: dict[str, Callable[[int], Identity]] = {
    "fstat": lambda fd: of_status(os.fstat(fd)),
    "fstatx": lambda fd: by_statx(fd, "", AT_EMPTY_PATH),
    "/proc/self/fd": lambda fd: of_status(os.stat(f"/proc/self/fd/{fd}")),
}


class Remembered:
    """The numbers of what this process holds, by every call."""

    def __init__(self, paths: dict[str, str], descriptors: dict[str, int]) -> None:
        self._calls = {
            **{(name, of): (call, path) for of, path in paths.items() for name, call in OF_PATHS.items()},
            **{
                (name, of): (call, fd)
                for of, fd in descriptors.items()
                for name, call in OF_DESCRIPTORS.items()
            },
        }
        self._was = {which: call(what) for which, (call, what) in self._calls.items()}

    def findings(self) -> list[Finding]:
        """Every number, then and now."""
        return [Finding(*which, str(was), asked(*self._calls[which])) for which, was in self._was.items()]

    def of(self, subject: str) -> Identity:
        """What stat(2) said of one of the paths."""
        return self._was["stat", subject]

    def forget(self, subject: str) -> None:
        """It is another file from now on, and rightly so."""
        self._was = {which: was for which, was in self._was.items() if which[1] != subject}


def asked(call: Callable[..., Identity], what: str | int) -> str:
    try:
        return str(call(what))
    except (OSError, StopIteration) as error:
        return getattr(error, "strerror", None) or "no such entry"
