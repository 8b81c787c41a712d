"""The timerfds of a workload that is restored and held, set for the instant at which it goes on.

CRIU arms a timerfd when it has restored the task that has it: other tasks, and whatever holds the workload, come
after that, and its clocks go on meanwhile. The timer belongs to the open file, not to the task: so it is taken from the held
task (pidfd_getfd(2)), and set from here, in the host's own time.

Rules: what was to fire before that instant fires at it. A descriptor of ours is closed before the tasks run.
Source: timerfd_create(2), pidfd_getfd(2); fs/timerfd.c: TFD_IOC_SET_TICKS.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Final

from ckpt.errors import OsRefused
from ckpt.host import linux
from ckpt.host.criu.timerfd_images import ArmedTimerfd
from ckpt.units import SECOND, Nanoseconds, Pid

TARGET: Final = "anon_inode:[timerfd]"
"""What /proc/PID/fd calls a timerfd."""

_TFD_IOC_SET_TICKS: Final = 0x40085400
_ABSTIME: Final = 1
_SPEC: Final = struct.Struct("=4q")
_libc: Final = ctypes.CDLL(None, use_errno=True)


def settle(descriptors: Iterable[tuple[Pid, int]]) -> None:
    """Let periodic timers that have expired, and were not read, go on with their beat: about 20 µs each.

    The kernel sets such a timer again only when somebody asks for it; until then nothing tells when it would fire
    next, and CRIU keeps it as one that is not armed. To ask changes nothing else. What is no timer, or has
    gone, is left out.

    Args:
        descriptors: Processes, and their descriptors for timerfds.
    """
    spec = ctypes.create_string_buffer(_SPEC.size)
    for pid, descriptor in descriptors:
        with suppress(OsRefused):
            fd = _take(pid, descriptor)
            _libc.timerfd_gettime(fd, spec)
            os.close(fd)


def rearm(timerfds: Iterable[tuple[ArmedTimerfd, int]], at_ns: Nanoseconds) -> None:
    """Set each timer for its time after `at_ns`, which is a reading of the host's CLOCK_BOOTTIME.

    Args:
        timerfds: What each had left at that instant, and a descriptor of ours for it.
        at_ns: When the workload goes on; it may have passed.

    Raises:
        OsRefused: the kernel did not take one.
    """
    for timer, fd in timerfds:
        now = timer.later(time.clock_gettime_ns(time.CLOCK_BOOTTIME) - at_ns)
        due_ns, flags = now.left_ns, timer.flags & ~_ABSTIME
        if timer.is_of_the_wall_clock:
            # So that it follows the clock when that is set, as it did.
            due_ns, flags = Nanoseconds(due_ns + time.clock_gettime_ns(time.CLOCK_REALTIME)), timer.flags
        try:
            _set(fd, flags, due_ns, now)
        except OSError as error:
            subject = f"the timerfd {timer.descriptor} of process {timer.holder}"
            raise _refused("set", subject, error) from error


@contextmanager
def taken(
    timerfds: Iterable[ArmedTimerfd], host_pid: Callable[[Pid], Pid | None]
) -> Iterator[list[tuple[ArmedTimerfd, int]]]:
    """Descriptors of ours for the timers of held tasks that have time left; closed at the end.

    Args:
        timerfds: As the images say.
        host_pid: The restored process that the images call so; None leaves its timers as CRIU set them.

    Raises:
        OsRefused: a descriptor cannot be taken.
    """
    found: list[tuple[ArmedTimerfd, int]] = []
    try:
        for timer in timerfds:
            pid = host_pid(timer.holder)
            if pid is not None and timer.left_ns:
                found.append((timer, _take(pid, timer.descriptor)))
        yield found
    finally:
        for _, fd in found:
            os.close(fd)


def _take(pid: Pid, descriptor: int) -> int:
    try:
        process = os.pidfd_open(pid)
        try:
            return linux.pidfd_getfd(process, descriptor)
        finally:
            os.close(process)
    except OSError as error:
        raise _refused("take", f"the timerfd {descriptor} of process {pid}", error) from error


def _set(fd: int, flags: int, value_ns: int, timer: ArmedTimerfd) -> None:
    spec = _SPEC.pack(*divmod(timer.interval_ns, SECOND), *divmod(value_ns, SECOND))
    if _libc.timerfd_settime(fd, flags, spec, None):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    if timer.ticks:
        fcntl.ioctl(fd, _TFD_IOC_SET_TICKS, struct.pack("=Q", timer.ticks))


def _refused(operation: str, subject: str, error: OSError) -> OsRefused:
    return OsRefused(operation=operation, subject=subject, reason=os.strerror(error.errno or 0))
