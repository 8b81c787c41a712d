"""Locks between ckpt processes: one file a lock, held with flock(2), so that they end with their holder.

Rules:
- All locks of one call are taken in the same order everywhere, or none of them.
- A lock file is removed by its holder, or by sweep() when the holder has died; whoever got a file that was
  just removed tries again.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Final, TypeVar

from ckpt.errors import Locked, NoSpace, OsRefused
from ckpt.host.process_table import process_ref
from ckpt.units import MILLISECOND, Nanoseconds

_PATIENCE: Final = Nanoseconds(200 * MILLISECOND)
"""How long a lock is waited for whose holder cannot be named."""

_LOOK_AGAIN_S: Final = 0.05
_T = TypeVar("_T")


@contextlib.contextmanager
def exclusive(directory: str, names: Iterable[str], *, subject: str) -> Iterator[None]:
    """Hold the locks of these names in `directory`, which is made if it is missing.

    Raises:
        Locked: another process has one of them; names its pid.
        OsRefused, NoSpace: the directory cannot be written.
    """
    with contextlib.ExitStack() as held:
        try:
            os.makedirs(directory, mode=0o700, exist_ok=True)
        except OSError as error:
            raise _refused(directory, error) from error
        for name in sorted(set(names)):
            held.enter_context(_lock(f"{directory}/{name}", subject))
        yield


def patiently(
    act: Callable[[], _T], patience_s: float, *, gives_up: Callable[[], bool] = lambda: False
) -> _T:
    """What `act` gives; as long as somebody's lock is in its way it is tried again.

    Args:
        act: Raises Locked before it has done anything.
        patience_s: For how long it is tried.
        gives_up: Whether it is of no use to wait any more.

    Raises:
        Locked: that took too long, or waiting is of no use.
        Exception: what else `act` raises.
    """
    ends = time.monotonic() + patience_s
    while True:
        try:
            return act()
        except Locked:
            if time.monotonic() >= ends or gives_up():
                raise
            # flock(2) alone would wait, but the file goes with the lock, and several are taken or none.
            time.sleep(_LOOK_AGAIN_S)


@contextlib.contextmanager
def once_free(
    lock: Callable[[], AbstractContextManager[None]],
    patience_s: float,
    *,
    gives_up: Callable[[], bool] = lambda: False,
) -> Iterator[None]:
    """Hold a lock, once nobody else does; arguments and errors as of patiently()."""
    with contextlib.ExitStack() as held:
        patiently(lambda: held.enter_context(lock()), patience_s, gives_up=gives_up)
        yield


def sweep(directory: str) -> None:
    """Remove the lock files in `directory` that nobody holds."""
    with contextlib.suppress(FileNotFoundError):
        for name in sorted(os.listdir(directory)):
            with contextlib.suppress(OSError):  # held, or its holder was quicker
                fd = os.open(f"{directory}/{name}", os.O_RDWR)
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    if _is_still(f"{directory}/{name}", fd):
                        os.unlink(f"{directory}/{name}")
                finally:
                    os.close(fd)


@contextlib.contextmanager
def _lock(path: str, subject: str) -> Iterator[None]:
    fd = _acquire(path, subject)
    try:
        yield
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        os.close(fd)


def _acquire(path: str, subject: str) -> int:
    patience_ends = time.monotonic_ns() + _PATIENCE
    while True:
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise _refused(path, error) from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_still(path, fd):
                os.truncate(fd, 0)
                os.pwrite(fd, str(os.getpid()).encode(), 0)
                return fd
        except BlockingIOError:
            holder = os.pread(fd, 32, 0).decode(errors="replace").strip()
            os.close(fd)
            # Who is named has died or has not come to write its name: somebody is about to let go, or sweeps.
            if not (holder.isdecimal() and process_ref(int(holder)) is not None):
                if time.monotonic_ns() < patience_ends:
                    os.sched_yield()
                    continue
                holder = "that has not told its number"
            raise Locked(subject=subject, holder=f"process {holder}") from None
        except OSError as error:
            os.close(fd)
            raise _refused(path, error) from error
        os.close(fd)


def _is_still(path: str, fd: int) -> bool:
    """Whether the file that was locked is the one that the path names now."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(fd))
    except FileNotFoundError:
        return False


def _refused(path: str, error: OSError) -> NoSpace | OsRefused:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoSpace(place=path, available_bytes=0, needed_bytes=4096, option="CKPT_STATE")
    return OsRefused(
        operation="lock",
        subject=path,
        reason=error.strerror or str(error),
        remedy="Make it writable, or set CKPT_STATE to a directory that is.",
    )
