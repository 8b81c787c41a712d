"""What a restore does to an image set so that clocks, timers and waits go on as they stood at the freeze.

Rule: the images are changed once, before CRIU reads them; what CRIU does too early is done again while the tasks
are held (ckpt.host.timerfds).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

from ckpt.host.criu.timerfd_images import ArmedTimerfd, armed_timerfds
from ckpt.host.criu.timers import mend_timers, wall_timers
from ckpt.host.criu.waits import by_image_thread, mend_waits
from ckpt.host.process_table import all_processes, descendants
from ckpt.model.clocks import ClockAdvance, PendingTimer, PendingWait, Resumption, TimerKind
from ckpt.model.workload import Tree
from ckpt.units import SECOND, Nanoseconds, Pid

_OF_THE_CPU: Final = frozenset(
    ("ITIMER_VIRTUAL", "ITIMER_PROF", "CLOCK_PROCESS_CPUTIME_ID", "CLOCK_THREAD_CPUTIME_ID")
)


def mend_images(
    images: Path,
    tree: Tree,
    waits: tuple[PendingWait, ...],
    timers: tuple[PendingTimer, ...],
    advance: ClockAdvance,
) -> tuple[ArmedTimerfd, ...]:
    """Let the tree's timers fire and its threads wait as if `advance` had passed on its clocks.

    Gives the timerfds as they are to be when the tree goes on, with the flags that they had.

    Raises:
        ObjectCorrupt, OsRefused: an image cannot be read or written.
    """
    flags = {(timer.holder, timer.descriptor): timer.flags for timer in armed_timerfds(images)}
    mend_timers(images, advance, timers)
    pids = {process.pid_inside: process.threads for process in tree.processes}
    mend_waits(images, by_image_thread(images, waits, pids), advance)
    return tuple(
        replace(timer, flags=flags[timer.holder, timer.descriptor]) for timer in armed_timerfds(images)
    )


def wall_clock_times(
    images: Path, timers: tuple[PendingTimer, ...], resumption: Resumption
) -> dict[Pid, dict[int, Nanoseconds]]:
    """When POSIX timers are due that were set to a time of CLOCK_REALTIME, by their process and number in the images.

    To be asked before mend_images(): CRIU sets them for a span.

    Raises:
        ObjectCorrupt, OsRefused: an image cannot be read.
    """
    since_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - resumption.at_ns
    frozen_at_ns = time.clock_gettime_ns(time.CLOCK_REALTIME) - since_ns - resumption.advance.realtime_ns
    return {
        pid: {number: Nanoseconds(frozen_at_ns + left_ns) for number, left_ns in found.items()}
        for pid, found in wall_timers(images, timers).items()
    }


def timed(timers: tuple[PendingTimer, ...], tree: Tree) -> frozenset[Pid]:
    """What the images call the processes of the tree that have timers which give signals, but those of the CPU."""
    inside = {process.pid_inside for process in tree.processes}
    return frozenset(
        timer.pid
        for timer in timers
        if timer.pid in inside and timer.kind is not TimerKind.TIMERFD and timer.clock not in _OF_THE_CPU
    )


def mend_for_criu(images: Path) -> None:
    """Spare an image set what CRIU alone would restore wrongly: timers, and waits as far as the images tell.

    Raises:
        ObjectCorrupt, OsRefused: an image cannot be read or written.
    """
    mend_timers(images)
    mend_waits(images, {}, ClockAdvance())


def restored_as(root: Pid) -> Callable[[Pid], Pid | None]:
    """From what the images call a process of the restored tree to its pid on this host."""
    inside = {pid_inside(pid): pid for pid in descendants((root,), all_processes())}
    return inside.get


def pid_inside(pid: Pid) -> Pid:
    """The number of a process or thread in its own namespace; 0 if it has ended."""
    try:
        with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as stream:
            numbers = next((line for line in stream if line.startswith("NSpid:")), "0").split()
    except OSError:
        return Pid(0)
    return Pid(int(numbers[-1]))


def await_instant(at_ns: Nanoseconds) -> None:
    """Return when this process reads CLOCK_BOOTTIME as `at_ns`."""
    left_ns = at_ns - time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    if left_ns > 0:
        time.sleep(left_ns / SECOND)
