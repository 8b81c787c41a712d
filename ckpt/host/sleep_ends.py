"""When the sleeps of threads end.

  * se.exec_start of /proc/PID/task/TID/sched is when the thread went to sleep, on a clock of its CPU that leaves out
    interrupts and what a hypervisor took: about right;
  * /proc/timer_list has the end of every sleep, exactly, but not whose it is: the one that fits is taken.

Rule: where anything is missing, or several ends fit that differ by much, the end is not known.
Source: kernel/sched/debug.c, kernel/time/hrtimer.c (hrtimer_wakeup).
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from ckpt.host import timer_list
from ckpt.units import MILLISECOND, Nanoseconds, Pid

Sleeper = tuple[Pid, Pid, Nanoseconds]
"""A process, a thread of it, and how long the thread was to sleep when it went to sleep."""

_ALIKE_NS: Final = 40 * MILLISECOND
"""Ends that differ by less are as good as one."""

_MARGINS: Final = ((10 * MILLISECOND, 100), (20 * MILLISECOND, 10))
"""How far a CPU's clock may be off, at first as it mostly is: by ticks that it lags behind (two of the slowest kernel,
100 Hz, at most), and by one part in so many that it loses to interrupts and the hypervisor."""

_AFTER_NS: Final = 2 * MILLISECOND
"""By how much the beginning may be later than that clock says."""


def ends_of(sleepers: Iterable[Sleeper]) -> dict[Pid, Nanoseconds]:
    """When the sleeps end, by their threads: on our CLOCK_MONOTONIC, for those where it can be told."""
    sleepers = list(sleepers)
    if not sleepers:
        return {}
    beginnings = _beginnings_of(sleepers)
    now_ns, ends = _ends_of_all_sleeps()
    found: dict[Pid, Nanoseconds] = {}
    for _, thread, timeout_ns in sleepers:
        if thread in beginnings:
            end = _fitting(ends, beginnings[thread], timeout_ns, now_ns)
            if end is not None:
                found[thread] = end
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class _Beginning:
    """When a thread went to sleep, on our CLOCK_MONOTONIC: not before `earliest_ns`, by the clock of its CPU."""

    earliest_ns: int
    latest_ns: int


def _beginnings_of(sleepers: Iterable[Sleeper]) -> dict[Pid, _Beginning]:
    found: dict[Pid, _Beginning] = {}
    by_cpu: dict[int, list[Sleeper]] = {}
    for sleeper in sleepers:
        by_cpu.setdefault(_cpu(sleeper), []).append(sleeper)
    allowed = os.sched_getaffinity(0)
    try:
        for cpu, here in by_cpu.items():
            with suppress(OSError):  # a CPU that we may not use
                # Only on that CPU its clock can be read: it is when we were charged last.
                os.sched_setaffinity(0, {cpu})
                before_ns = time.monotonic_ns()
                now = _charged_until("/proc/thread-self/sched")
                after_ns = time.monotonic_ns()
                for pid, thread, _ in here:
                    began = _charged_until(f"/proc/{pid}/task/{thread}/sched")
                    if began is not None and now is not None:
                        found[thread] = _Beginning(
                            earliest_ns=before_ns - (now - began), latest_ns=after_ns - (now - began)
                        )
    finally:
        os.sched_setaffinity(0, allowed)
    return found


def _fitting(ends: list[int], began: _Beginning, timeout_ns: int, now_ns: int) -> Nanoseconds | None:
    """The one of the sleeps that began about then, and was to be so long."""
    asleep_ns = now_ns - began.earliest_ns
    for lag_ns, part in _MARGINS:
        earliest, latest = began.earliest_ns - lag_ns - asleep_ns // part, began.latest_ns + _AFTER_NS
        fitting = [end for end in ends if earliest <= end - timeout_ns <= latest]
        if fitting and max(fitting) - min(fitting) <= _ALIKE_NS:
            return Nanoseconds(min(fitting, key=lambda end: abs(end - timeout_ns - began.latest_ns)))
    return None


def _ends_of_all_sleeps() -> tuple[int, list[int]]:
    """Now, and when each sleep on this machine ends that has a timer of high resolution: on our CLOCK_MONOTONIC."""
    text = timer_list.read()
    ends: list[int] = [timer.due_ns for timer in timer_list.timers_calling(b"hrtimer_wakeup", text)]
    return timer_list.taken_at(text) or 0, ends


def _charged_until(path: str) -> int | None:
    """When a thread was last charged for running, in nanoseconds on the clock of its CPU."""
    for line in _read(path).splitlines():
        if line.startswith("se.exec_start"):
            whole, _, fraction = line.rpartition(" ")[2].partition(".")
            return int(whole) * MILLISECOND + int(fraction.ljust(6, "0")[:6])
    return None


def _cpu(sleeper: Sleeper) -> int:
    """The CPU that the thread ran on last; -1 if it has ended."""
    fields = _read(f"/proc/{sleeper[0]}/task/{sleeper[1]}/stat").rpartition(")")[2].split()
    return int(fields[36]) if len(fields) > 36 else -1


def _read(path: str) -> str:
    try:
        with open(path, "rb", buffering=0) as stream:
            return stream.read().decode(errors="replace")
    except OSError:
        return ""
