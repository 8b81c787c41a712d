"""The timers of a held process that give signals: itimers and POSIX timers, put off by how long it was held.

CRIU arms them in the task's last steps before its own code, with what remained: where the task is held after that,
they go on without it, while its clocks are set for the end of the hold. They belong to the process, so the process sets
them itself, under ptrace.

Rule: timers that count the CPU's time stand still with the process, and are left alone.
Source: setitimer(2), timer_settime(2), proc_pid_timers(5).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

from ckpt.host.ptrace import Tracee
from ckpt.units import SECOND, Nanoseconds, Pid

_GETITIMER: Final = 36
_SETITIMER: Final = 38
_TIMER_SETTIME: Final = 223
_TIMER_GETTIME: Final = 224
"""The numbers of x86-64, the only machine that ckpt.host.ptrace supports."""

_ITIMER_REAL: Final = 0
_MICROSECONDS: Final = 1_000_000
_SPEC: Final = struct.Struct("=4q")
_CPU_CLOCKS: Final = frozenset((2, 3))


def put_off(tracee: Tracee, by_ns: Nanoseconds) -> None:
    """Let the timers of a stopped process fire later by so much; those that have fired have.

    Raises:
        OSError: a system call failed in the process.
    """
    with tracee.scratch(_SPEC.size) as place:
        tracee.call(_GETITIMER, _ITIMER_REAL, place)
        if later := _later(tracee.read(place, _SPEC.size), by_ns, _MICROSECONDS):
            tracee.write(place, later)
            tracee.call(_SETITIMER, _ITIMER_REAL, place, 0)
        for number in _posix_timers(tracee.pid):
            tracee.call(_TIMER_GETTIME, number, place)
            if later := _later(tracee.read(place, _SPEC.size), by_ns, SECOND):
                tracee.write(place, later)
                tracee.call(_TIMER_SETTIME, number, 0, place, 0)


def _later(spec: bytes, by_ns: int, fractions: int) -> bytes:
    """The interval and the value with `by_ns` on top, in so many fractions of a second; nothing if it is not armed."""
    interval, interval_rest, value, rest = _SPEC.unpack(spec)
    if not value and not rest:
        return b""
    seconds, rest = divmod(value * fractions + rest + by_ns * fractions // SECOND, fractions)
    return _SPEC.pack(interval, interval_rest, seconds, rest)


def _posix_timers(pid: Pid) -> Iterator[int]:
    """The numbers of those that count no CPU's time."""
    number = -1
    with suppress(OSError), open(f"/proc/{pid}/timers", encoding="ascii", errors="replace") as stream:
        for line in stream:
            name, _, value = line.partition(":")
            if name == "ID":
                number = int(value)
            elif name == "ClockID" and int(value) >= 0 and int(value) not in _CPU_CLOCKS:
                yield number
