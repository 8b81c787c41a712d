"""The door to userfaultfd(2): what its descriptor tells, and how memory is filled in.

Source: include/uapi/linux/userfaultfd.h; Documentation/admin-guide/mm/userfaultfd.rst, "Non-cooperative userfaultfd";
mm/userfaultfd.c, mfill_atomic(): a range must lie in one area, and EAGAIN is an event that was not read yet.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final, TypeAlias

from ckpt.units import PAGE_BYTES

_MESSAGE: Final = struct.Struct("=B7xQQQ")
_FAULT, _FORK, _REMAP, _REMOVE, _UNMAP = 0x12, 0x13, 0x14, 0x15, 0x16

_UNREGISTER: Final = 0x8010AA01
_WAKE: Final = 0x8010AA02
_COPY: Final = 0xC028AA03
_ZERO: Final = 0xC020AA04

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Fault:
    """A task waits for the page at this address."""

    address: int


@dataclass(frozen=True, slots=True)
class Forked:
    """The process has a child with the same memory; this is the child's descriptor, which belongs to who reads it."""

    fd: int


@dataclass(frozen=True, slots=True)
class Moved:
    """Memory has gone to another address."""

    start: int
    to: int
    size: int


@dataclass(frozen=True, slots=True)
class Gone:
    """Nothing is to be filled in there any more; `stays` if the area is still there, and full of zeros."""

    start: int
    end: int
    stays: bool


Event: TypeAlias = Fault | Forked | Moved | Gone


class Filled(Enum):
    """What came of filling in a range. BUSY: read events, and try again. NO_AREA, NO_PROCESS: it has gone."""

    DONE = auto()
    THERE = auto()
    BUSY = auto()
    NO_AREA = auto()
    NO_PROCESS = auto()


def read_event(fd: int) -> Event | None:
    """The next event; None if there is none now.

    Raises:
        OSError: the descriptor is unusable, or tells what is not known here.
    """
    try:
        content = os.read(fd, _MESSAGE.size)
    except BlockingIOError:
        return None
    if len(content) < _MESSAGE.size:
        return None
    kind, first, second, third = _MESSAGE.unpack(content)
    if kind == _FAULT:
        return Fault(second // PAGE_BYTES * PAGE_BYTES)
    if kind == _FORK:
        return Forked(first & 0xFFFFFFFF)
    if kind == _REMAP:
        return Moved(first, second, third)
    if kind in (_REMOVE, _UNMAP):
        return Gone(first, second, kind == _REMOVE)
    raise OSError(errno.EPROTO, f"an event of kind {kind:#x}")


def copy(fd: int, to: int, source: int, size: int) -> tuple[Filled, int]:
    """Fill in a range from an address of this process; what came of it, and how many bytes were filled in."""
    argument = (ctypes.c_int64 * 5)(to, source, size, 0, 0)
    return _filled(_ioctl(fd, _COPY, argument), max(0, argument[4]))


def zero(fd: int, at: int) -> Filled:
    """Fill in a page of zeros."""
    return _filled(_ioctl(fd, _ZERO, (ctypes.c_int64 * 4)(at, PAGE_BYTES, 0, 0)), 0)[0]


def wake(fd: int, at: int, size: int) -> None:
    """Let those go on that wait for pages which are there."""
    _ioctl(fd, _WAKE, (ctypes.c_int64 * 2)(at, size))


def leave_alone(fd: int, start: int, end: int) -> None:
    """Let the kernel answer for the range again."""
    with suppress(OSError):
        _filled(_ioctl(fd, _UNREGISTER, (ctypes.c_int64 * 2)(start, end - start)), 0)


def _ioctl(fd: int, request: int, argument: ctypes.Array[ctypes.c_int64]) -> int:
    done = _libc.ioctl(ctypes.c_int(fd), ctypes.c_ulong(request), argument)
    return 0 if done == 0 else ctypes.get_errno()


def _filled(error: int, count: int) -> tuple[Filled, int]:
    found = _ERRORS.get(error)
    if found is None:
        raise OSError(error, os.strerror(error))
    return found, count


_ERRORS: Final = {
    0: Filled.DONE,
    errno.EEXIST: Filled.THERE,
    errno.EAGAIN: Filled.BUSY,
    errno.ENOENT: Filled.NO_AREA,
    errno.ESRCH: Filled.NO_PROCESS,
}
