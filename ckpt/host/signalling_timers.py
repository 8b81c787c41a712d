"""The timers of a held process that give signals: itimers and POSIX timers, put off by how long it was held.

CRIU arms them in the task's last steps before its own code, with what remained: where the task is held after that,
they go on without it, while its clocks are set for the end of the hold. They belong to the process, so the process sets
them itself, under ptrace.

Rules:
- Timers that count the CPU's time stand still with the process, and are left alone. So is a POSIX timer whose signal
  waits already: to set it would take the signal back.
- A timer can fire at any time until it is stopped. It is stopped before it is set anew, and what it did until then
  stands: no signal is lost, and none comes twice.
Source: setitimer(2), timer_settime(2), sigaction(2) (siginfo_t), PTRACE_PEEKSIGINFO in ptrace(2).
"""

from __future__ import annotations

import os
import re
import struct
import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from ckpt.host.posix_timers import timers_of
from ckpt.host.ptrace import Tracee
from ckpt.units import SECOND, Nanoseconds

_GETITIMER: Final = 36
_SETITIMER: Final = 38
_TIMER_SETTIME: Final = 223
_TIMER_GETTIME: Final = 224
"""The numbers of x86-64, the only machine that ckpt.host.ptrace supports."""

_ITIMER_REAL: Final = 0
_ABSTIME: Final = 1
_MICROSECONDS: Final = 1_000_000
_SPEC: Final = struct.Struct("=4q")
"""The interval and what remains, each as seconds and nanoseconds; microseconds for itimers."""

_AT_ONCE: Final = (0, 1)
_NOT_AT_ALL: Final = bytes(_SPEC.size)
_SIGINFO: Final = struct.Struct("=i4xi4xi")
"""si_signo, si_code, and si_timerid."""

_SI_TIMER: Final = -2
_CPU_CLOCKS: Final = frozenset((2, 3))

Times = Mapping[int, Nanoseconds]
"""When POSIX timers are due, on CLOCK_REALTIME, by their numbers."""

_NO_TIMES: Final[Times] = MappingProxyType({})

_TAKES_SIGNALS_BACK: Final = (6, 13)
"""Since this Linux a POSIX timer that is set anew takes its waiting signal back (kernel/time/posix-timers.c)."""


def put_off(tracee: Tracee, by_ns: Nanoseconds, times: Times = _NO_TIMES) -> None:
    """Let the timers of a stopped process fire later by so much; those that have fired have.

    Args:
        tracee: The process.
        by_ns: How long it was held.
        times: When POSIX timers of CLOCK_REALTIME are due that follow that clock, also if it is set; they are not put
            off. One that is due is left as it is; a periodic one keeps its beat.

    Raises:
        OSError: a system call failed in the process.
    """
    with tracee.unfiltered(), tracee.scratch(2 * _SPEC.size) as place:
        _put_off_itimer(tracee, place, by_ns)
        pending = _signalled(tracee)
        for number, clock in timers_of(tracee.pid):
            if clock < 0 or clock in _CPU_CLOCKS or number in pending:
                continue
            tracee.call(_TIMER_GETTIME, number, place)
            spec = tracee.read(place, _SPEC.size)
            if number in times:
                flags, later = _ABSTIME, _at_time(spec, times[number])
            else:
                flags, later = 0, _later(spec, by_ns, SECOND)
            if later:
                _replace(tracee, place, number, flags, later)


def _put_off_itimer(tracee: Tracee, place: int, by_ns: int) -> None:
    tracee.call(_GETITIMER, _ITIMER_REAL, place)
    later = _later(tracee.read(place, _SPEC.size), by_ns, _MICROSECONDS)
    if not later:
        return
    old = place + _SPEC.size
    tracee.write(place, _NOT_AT_ALL)
    tracee.call(_SETITIMER, _ITIMER_REAL, place, old)
    interval = _SPEC.unpack(later)[:2]
    if not any(_SPEC.unpack(tracee.read(old, _SPEC.size))[2:]):
        # It fired in between, and goes on after its interval, if it has one.
        later = _later(_SPEC.pack(*interval, *interval), by_ns, _MICROSECONDS)
    if later:
        tracee.write(place, later)
        tracee.call(_SETITIMER, _ITIMER_REAL, place, 0)


def _replace(tracee: Tracee, place: int, number: int, flags: int, later: bytes) -> None:
    """Set a POSIX timer whose signal did not wait when it was asked."""
    tracee.write(place, _NOT_AT_ALL)
    tracee.call(_TIMER_SETTIME, number, 0, place, 0)
    if number in _signalled(tracee):
        # It fired in between.
        *interval, value, rest = _SPEC.unpack(later)
        if _takes_signals_back():
            # To fire is what makes the signal valid that waits; a second one does not come.
            flags, later = 0, _SPEC.pack(*interval, *_AT_ONCE)
        elif any(interval):
            seconds, rest = divmod(rest + interval[1], SECOND)
            later = _SPEC.pack(*interval, value + interval[0] + seconds, rest)
        else:
            return
    tracee.write(place, later)
    tracee.call(_TIMER_SETTIME, number, flags, place, 0)


def _takes_signals_back() -> bool:
    numbers = re.match(r"(\d+)\.(\d+)", os.uname().release)
    return numbers is not None and (int(numbers[1]), int(numbers[2])) >= _TAKES_SIGNALS_BACK


def _signalled(tracee: Tracee) -> set[int]:
    """The POSIX timers whose signals wait."""
    found: set[int] = set()
    for siginfo in tracee.waiting_signals():
        _, code, number = _SIGINFO.unpack_from(siginfo)
        if code == _SI_TIMER:
            found.add(number)
    return found


def _at_time(spec: bytes, due_ns: int) -> bytes:
    """The interval and the next time that is not over yet; nothing for a timer that is left as it is."""
    interval, interval_rest, *left = _SPEC.unpack(spec)
    interval_ns = interval * SECOND + interval_rest
    late_ns = time.clock_gettime_ns(time.CLOCK_REALTIME) - due_ns
    if late_ns >= 0 and interval_ns:
        due_ns += (late_ns // interval_ns + 1) * interval_ns
    elif late_ns >= 0 or not any(left):
        return b""
    return _SPEC.pack(interval, interval_rest, *divmod(due_ns, SECOND))


def _later(spec: bytes, by_ns: int, fractions: int) -> bytes:
    """The interval and the value with `by_ns` on top, in so many fractions of a second; nothing if it is not armed."""
    interval, interval_rest, value, rest = _SPEC.unpack(spec)
    if not value and not rest:
        return b""
    seconds, rest = divmod(value * fractions + rest + by_ns * fractions // SECOND, fractions)
    return _SPEC.pack(interval, interval_rest, seconds, rest)
