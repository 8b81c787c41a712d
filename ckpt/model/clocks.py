"""The instant of a checkpoint, and what a restore makes of the time that passed since.

Source: time_namespaces(7); the policies are the table in docs of `ckpt restore --time`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final, Self

from ckpt.units import MILLISECOND, SECOND, ByteCount, Nanoseconds, Pid

_RESTORE_NS: Final = 170 * MILLISECOND
_TASK_NS: Final = 15 * MILLISECOND
_HURRIED: Final = 0.6
"""What is reckoned of a usual restore's time where waiting would cost more than clocks that saw it pass."""

_SPAN_NS_MAX: Final = 60 * SECOND


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

    def later(self, by: Nanoseconds) -> Self:
        """The same clocks when `by` has passed."""
        return replace(
            self,
            realtime_ns=Nanoseconds(self.realtime_ns + by),
            monotonic_ns=Nanoseconds(self.monotonic_ns + by),
            boottime_ns=Nanoseconds(self.boottime_ns + by),
        )


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

    Source: timer_settime(2), setitimer(2), timerfd_create(2). `clock` is the kernel's name of the clock. `absolute`
    is whether it is known to fire at a time of the wall clock, and not after a span.
    """

    pid: Pid
    kind: TimerKind
    clock: str
    value_ns: Nanoseconds
    interval_ns: Nanoseconds
    absolute: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingWait:
    """A system call in which a thread waited at the freeze, and how long it still had to.

    `pid` and `thread` are as the host saw them, `call` is the kernel's name of it ("poll", "clock_nanosleep").
    `left_ns` is what remained at the freeze, 0 or less where it was over: None where that is not known. `clock` is
    the kernel's name of the clock that the wait is measured by. A wait without an end needs no record.
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
    """What a tree's clocks must read at the instant at which it goes on, in nanoseconds."""

    monotonic_ns: Nanoseconds
    boottime_ns: Nanoseconds


@dataclass(frozen=True, slots=True, kw_only=True)
class ClockAdvance:
    """How far the clocks that the tasks see went on between the freeze and the instant of the restore.

    Only the wall clock may have gone back: `realtime_ns` is negative then.
    """

    realtime_ns: Nanoseconds = Nanoseconds(0)
    monotonic_ns: Nanoseconds = Nanoseconds(0)
    boottime_ns: Nanoseconds = Nanoseconds(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Resumption:
    """How a tree's clocks go on: what they read (None: the host's, as they are), and how far they went.

    `at_ns` is the instant that both are for, on the host's CLOCK_BOOTTIME: no task of the tree runs before it.
    """

    clocks: ClockTarget | None
    advance: ClockAdvance
    at_ns: Nanoseconds


def resume_clocks(policy: TimePolicy, saved: Clocks, offsets: TimeOffsets, at: Clocks) -> Resumption:
    """What a workload that was saved reads when it goes on at the instant `at`, which may be still to come.

    The time spent is measured on CLOCK_REALTIME, the only clock that two hosts share; where it was set
    back meanwhile, the time spent counts as zero, so that no policy lets a clock go back.
    """
    monotonic = saved.monotonic_ns + offsets.monotonic_ns
    boottime = saved.boottime_ns + offsets.boottime_ns
    on_realtime = at.realtime_ns - saved.realtime_ns
    spent = max(0, on_realtime)
    if policy is TimePolicy.HOST:
        # Another host's clocks may be behind: its timers then wait as long as they would have.
        on_monotonic = max(0, at.monotonic_ns - monotonic)
        on_boottime = max(0, at.boottime_ns - boottime)
    else:
        on_monotonic = spent if policy is TimePolicy.ELAPSED else 0
        on_boottime = 0 if policy is TimePolicy.CONTINUE else spent
    clocks = ClockTarget(
        monotonic_ns=Nanoseconds(monotonic + on_monotonic),
        boottime_ns=Nanoseconds(boottime + on_boottime),
    )
    return Resumption(
        clocks=None if policy is TimePolicy.HOST else clocks,
        advance=ClockAdvance(
            realtime_ns=Nanoseconds(on_realtime),
            monotonic_ns=Nanoseconds(on_monotonic),
            boottime_ns=Nanoseconds(on_boottime),
        ),
        at_ns=at.boottime_ns,
    )


def restore_span(
    image_bytes: ByteCount, tasks: int, pace: ByteCount, *, hurried: bool = False
) -> Nanoseconds:
    """How long from the choice of the clocks until the tasks can go on: rather a little too much.

    A time namespace cannot be set any more once a task is in it, and tasks are in it long before they can go on:
    so its clocks are set for an instant to come. What is over by then waits for it; what is not sees the rest pass.

    Args:
        image_bytes: The size of all images.
        tasks: How many processes there are.
        pace: How many bytes of images the host restores in a second.
        hurried: Rather too little: nobody waits, and the clocks see what it takes longer.
    """
    if hurried:
        return Nanoseconds(min(int(_HURRIED * image_bytes * SECOND / pace), _SPAN_NS_MAX))
    span_ns = _RESTORE_NS + tasks * _TASK_NS + image_bytes * SECOND // pace
    return Nanoseconds(min(span_ns, _SPAN_NS_MAX))


def realtime_went_back(saved: Clocks, now: Nanoseconds) -> Nanoseconds:
    """By how much CLOCK_REALTIME is behind what the workload saw last; 0 where it is not."""
    return Nanoseconds(max(0, saved.realtime_ns - now))


def monotonic_goes_back(saved: Clocks, offsets: TimeOffsets, now: Clocks) -> Nanoseconds:
    """By how much CLOCK_MONOTONIC of this host is behind what a workload with these offsets read last; 0 where it is not."""
    return Nanoseconds(max(0, saved.monotonic_ns + offsets.monotonic_ns - now.monotonic_ns))
