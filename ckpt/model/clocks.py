"""The instant of a checkpoint, and what a restore makes of the time that passed since.

Source: time_namespaces(7); the policies are the table in docs of `ckpt restore --time`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from ckpt.units import Nanoseconds, Pid


@dataclass(frozen=True, slots=True, kw_only=True)
class Clocks:
    """The host's clocks, read at one instant while the workload was frozen.

    The three clocks are as a process outside any time namespace reads them. `time_zone` is the host's zone
    name or "" where it names none; `clocksource` is the kernel's current one.
    """

    realtime_ns: Nanoseconds
    monotonic_ns: Nanoseconds
    boottime_ns: Nanoseconds
    boot_id: str
    time_zone: str
    clocksource: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeOffsets:
    """What a tree's time namespace adds to the host's clocks; zero in the host's own."""

    monotonic_ns: Nanoseconds = Nanoseconds(0)
    boottime_ns: Nanoseconds = Nanoseconds(0)


class TimerKind(StrEnum):
    """Which interface armed a timer."""

    TIMERFD = "timerfd"
    POSIX = "posix"
    ITIMER = "itimer"


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingTimer:
    """An armed timer as CRIU recorded it: `value_ns` is what remains until it fires.

    Source: timer_settime(2), setitimer(2), timerfd_create(2). `clock` is the kernel's name of the clock.
    """

    pid: Pid
    kind: TimerKind
    clock: str
    value_ns: Nanoseconds
    interval_ns: Nanoseconds


class TimePolicy(StrEnum):
    """What a restored workload's clocks make of the time spent in the checkpoint."""

    SUSPEND = "suspend"
    CONTINUE = "continue"
    ELAPSED = "elapsed"
    HOST = "host"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClockTarget:
    """What a tree's clocks must read at the instant of its restore, in nanoseconds."""

    monotonic_ns: Nanoseconds
    boottime_ns: Nanoseconds


def clocks_at_restore(
    policy: TimePolicy, saved: Clocks, offsets: TimeOffsets, realtime_now_ns: Nanoseconds
) -> ClockTarget | None:
    """What the workload must read when it goes on; None means the host's clocks as they are.

    The time spent is measured on CLOCK_REALTIME, the only clock that two hosts share; where it was set
    back meanwhile, the time spent counts as zero, so that no policy lets a clock go back.
    """
    monotonic = saved.monotonic_ns + offsets.monotonic_ns
    boottime = saved.boottime_ns + offsets.boottime_ns
    spent = max(0, realtime_now_ns - saved.realtime_ns)
    match policy:
        case TimePolicy.SUSPEND:
            return ClockTarget(monotonic_ns=Nanoseconds(monotonic), boottime_ns=Nanoseconds(boottime + spent))
        case TimePolicy.CONTINUE:
            return ClockTarget(monotonic_ns=Nanoseconds(monotonic), boottime_ns=Nanoseconds(boottime))
        case TimePolicy.ELAPSED:
            return ClockTarget(
                monotonic_ns=Nanoseconds(monotonic + spent), boottime_ns=Nanoseconds(boottime + spent)
            )
        case TimePolicy.HOST:
            return None
