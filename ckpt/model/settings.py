"""How the kernel treats the tasks of a workload where CRIU keeps nothing of it: CPUs, I/O, timers, core dumps.

Source: sched_setaffinity(2), ioprio_set(2), proc_pid_timerslack_ns(5), core(5), sched(7) ("The autogroup feature").
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from ckpt.units import Nanoseconds, Pid

CPU_NUMBER_MAX: Final = 65_535
"""The highest number of a CPU: the kernel is built for 8192 at most."""

IO_PRIORITY_MAX: Final = 0xFFFF
"""The highest value of ioprio_set(2): three bits of class above thirteen of the class's own."""

NICE_MIN: Final = -20
NICE_MAX: Final = 19

COREDUMP_FILTER_MAX: Final = (1 << 32) - 1

TIMER_SLACK_NS_MAX: Final = Nanoseconds((1 << 63) - 1)
"""292 years: what the kernel may have above it makes no difference."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuRange:
    """CPUs with numbers that follow each other, both ends included."""

    first: int
    last: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ThreadSettings:
    """What was set for one thread; None where its host did not tell.

    `thread` is as the host saw it. `cpus` are those that it was bound to, in rising order; none for a thread that might
    run on all. `io_priority` is as ioprio_set(2) takes it, 0 for one that follows the nice value.
    """

    thread: Pid
    cpus: tuple[CpuRange, ...]
    io_priority: int | None
    timer_slack_ns: Nanoseconds | None

    @property
    def cpu_numbers(self) -> frozenset[int]:
        """The CPUs that it was bound to, one by one."""
        return frozenset(number for each in self.cpus for number in range(each.first, each.last + 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessSettings:
    """What was set for one process and its threads; None where its host did not tell.

    `pid` is as the host saw it. `coredump_filter` has a bit for each kind of mapping, `autogroup_nice` is the nice
    value of the group that its session forms for the scheduler. `threads` are in the order of Process.threads.
    """

    pid: Pid
    coredump_filter: int | None
    autogroup_nice: int | None
    threads: tuple[ThreadSettings, ...]


def cpu_ranges(numbers: frozenset[int] | set[int]) -> tuple[CpuRange, ...]:
    """These CPUs as ranges, rising, as few as possible."""
    found: list[CpuRange] = []
    for number in sorted(numbers):
        if found and found[-1].last == number - 1:
            found[-1] = CpuRange(first=found[-1].first, last=number)
        else:
            found.append(CpuRange(first=number, last=number))
    return tuple(found)
