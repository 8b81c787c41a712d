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


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingWait:
    """A system call in which a thread waited at the freeze, and how long it still had to.

    `pid` and `thread` are as this host saw them, `call` is the kernel's name of it ("poll", "clock_nanosleep").
    `left_ns` is what remained at the freeze: None where that is not known, or where the wait has no end. `clock`
    is the kernel's name of the clock that the wait is measured by.
    """

    pid: Pid
    thread: Pid
    call: str
    clock: str
    left_ns: Nanoseconds | None


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


@dataclass(frozen=True, slots=True, kw_only=True)
class ClockAdvance:
    """How far the clocks that the tasks see went on between the dump and the restore, in nanoseconds."""

    realtime_ns: Nanoseconds = Nanoseconds(0)
    monotonic_ns: Nanoseconds = Nanoseconds(0)
    boottime_ns: Nanoseconds = Nanoseconds(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Resumption:
    """How a tree's clocks go on: what they read (None: the host's, as they are), and how far they went."""

    clocks: ClockTarget | None
    advance: ClockAdvance


def resume_clocks(policy: TimePolicy, saved: Clocks, offsets: TimeOffsets, now: Clocks) -> Resumption:
    """What a workload that was saved reads when it goes on now.

    The time spent is measured on CLOCK_REALTIME, the only clock that two hosts share; where it was set
    back meanwhile, the time spent counts as zero, so that no policy lets a clock go back.
    """
    monotonic = saved.monotonic_ns + offsets.monotonic_ns
    boottime = saved.boottime_ns + offsets.boottime_ns
    spent = max(0, now.realtime_ns - saved.realtime_ns)
    if policy is TimePolicy.HOST:
        # Another host's clocks may be behind: its timers then wait as long as they would have.
        on_monotonic = max(0, now.monotonic_ns - monotonic)
        on_boottime = max(0, now.boottime_ns - boottime)
    else:
        on_monotonic = spent if policy is TimePolicy.ELAPSED else 0
        on_boottime = 0 if policy is TimePolicy.CONTINUE else spent
    advance = ClockAdvance(
        realtime_ns=Nanoseconds(spent),
        monotonic_ns=Nanoseconds(on_monotonic),
        boottime_ns=Nanoseconds(on_boottime),
    )
    if policy is TimePolicy.HOST:
        return Resumption(clocks=None, advance=advance)
    return Resumption(
        clocks=ClockTarget(
            monotonic_ns=Nanoseconds(monotonic + on_monotonic),
            boottime_ns=Nanoseconds(boottime + on_boottime),
        ),
        advance=advance,
    )
