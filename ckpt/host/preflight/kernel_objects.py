"""What only the kernel can tell: whether two tasks share an object, and who touched a semaphore last.

Rule: a task that has ended, one that we may not look at, and a machine whose system call numbers are not known tell
nothing; that is no error.
Source: kcmp(2), semctl(2); the numbers are from <asm/unistd_64.h> and <asm-generic/unistd.h>.
"""

from __future__ import annotations

import ctypes
import functools
import os
import platform
from collections.abc import Iterable
from enum import IntEnum
from typing import Final

from ckpt.units import Pid

_SYS_KCMP: Final = {"x86_64": 312, "aarch64": 272}.get(platform.machine())
_GETPID: Final = 11
_SAME, _LESS, _GREATER = 0, 1, 2

_libc: Final = ctypes.CDLL(None, use_errno=True)


class Shared(IntEnum):
    """An object that tasks may have in common, by its number in kcmp(2)."""

    MEMORY = 1
    DESCRIPTORS = 2
    DIRECTORIES = 3


def share(one: Pid, other: Pid, what: Shared) -> bool:
    """Whether both tasks have the same object, as far as the kernel tells."""
    return _compare(one, other, what) == _SAME


def differ(one: Pid, other: Pid, what: Shared) -> bool:
    """Whether each of the tasks has an object of its own, as far as the kernel tells."""
    return _compare(one, other, what) > _SAME


def groups(tasks: Iterable[Pid], what: Shared) -> list[list[Pid]]:
    """The tasks, those together that have the same object."""

    def order(one: Pid, other: Pid) -> int:
        return {_LESS: -1, _GREATER: 1}.get(_compare(one, other, what), 0)

    # The kernel puts objects into an order, so that n tasks take n * log(n) calls and not n * n.
    ordered = sorted(tasks, key=functools.cmp_to_key(order))
    found: list[list[Pid]] = []
    for task in ordered:
        if found and share(found[-1][0], task, what):
            found[-1].append(task)
        else:
            found.append([task])
    return found


def last_toucher(semaphores: int, number: int) -> Pid:
    """The process that operated last on one semaphore of a set of our own IPC namespace; 0 for none.

    Raises:
        OSError: there is no such set any more.
    """
    pid = _libc.semctl(semaphores, number, _GETPID)
    if pid < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return Pid(pid)


def _compare(one: Pid, other: Pid, what: Shared) -> int:
    """What kcmp(2) says; -1 where it says nothing."""
    return -1 if _SYS_KCMP is None else int(_libc.syscall(_SYS_KCMP, one, other, int(what), 0, 0))
