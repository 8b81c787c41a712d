"""The lock that keeps a sweep from what a writer relies on.

Rules: F47 and F48 of images/FORMAT.md. Writers share the lock, a sweep has it alone. The kernel drops it with
the process, so that a crash leaves nothing locked.
Source: flock(2), proc_locks(5).
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from ckpt.errors import Locked
from ckpt.store.refused import converted

_POLL_S: Final = 0.02
# A sweep takes seconds. A dump takes minutes: nobody should wait for that without being told.
_SHARED_ATTEMPTS: Final = round(60 / _POLL_S)
_ALONE_ATTEMPTS: Final = round(10 / _POLL_S)


@contextmanager
def shared(path: str, place: str) -> Iterator[None]:
    """Hold the lock together with others; waits up to a minute for a sweep."""
    with _held(path, place, fcntl.LOCK_SH, _SHARED_ATTEMPTS):
        yield


@contextmanager
def alone(path: str, place: str, *, patient: bool) -> Iterator[None]:
    """Hold the lock with nobody else; a patient caller waits up to ten seconds."""
    with _held(path, place, fcntl.LOCK_EX, _ALONE_ATTEMPTS if patient else 1):
        yield


@contextmanager
def _held(path: str, place: str, operation: int, attempts: int) -> Iterator[None]:
    with converted(place):
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        _acquire(fd, place, operation, attempts)
        try:
            yield
        finally:
            # Closing is not enough: a child that was forked meanwhile has the lock, too, until it ends.
            fcntl.flock(fd, fcntl.LOCK_UN)
    finally:
        os.close(fd)


def _acquire(fd: int, place: str, operation: int, attempts: int) -> None:
    # Not a blocking flock: it could neither give up nor be interrupted from another thread.
    for attempt in range(attempts):
        if attempt:
            time.sleep(_POLL_S)
        if _taken(fd, place, operation):
            return
    raise Locked(subject=f"The store {place}", holder=_holders(fd))


def _taken(fd: int, place: str, operation: int) -> bool:
    with converted(place):
        try:
            fcntl.flock(fd, operation | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def _holders(fd: int) -> str:
    """The processes that hold the lock, as far as the kernel shows them."""
    wanted = str(os.fstat(fd).st_ino)
    pids = set()
    try:
        with open("/proc/locks", encoding="ascii") as lines:
            for line in lines:
                # 1: FLOCK  ADVISORY  WRITE 1217 fe:00:393258 0 EOF; waiters have "->" after the number
                words = line.split()
                if words[1] == "FLOCK" and words[5].rpartition(":")[2] == wanted:
                    pids.add(f"process {words[4]}")
    except OSError:
        pids.clear()
    return ", ".join(sorted(pids)) or "another process"
