"""What a restore does to an image set so that clocks, timers and waits go on as they stood at the freeze.

Rule: the images are changed once, before CRIU reads them; what CRIU does too early is done again while the tasks
are held (ckpt.host.timerfds).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ckpt.host.criu.timerfd_images import ArmedTimerfd, armed_timerfds
from ckpt.host.criu.timers import mend_timers
from ckpt.host.criu.waits import by_image_thread, mend_waits
from ckpt.host.process_table import all_processes, descendants
from ckpt.model.clocks import ClockAdvance, PendingWait
from ckpt.model.workload import Tree
from ckpt.units import SECOND, Nanoseconds, Pid


def mend_images(
    images: Path, tree: Tree, waits: tuple[PendingWait, ...], advance: ClockAdvance
) -> tuple[ArmedTimerfd, ...]:
    """Let the tree's timers fire and its threads wait as if `advance` had passed on its clocks.

    Gives the timerfds as they are to be when the tree goes on, with the flags that they had.

    Raises:
        ObjectCorrupt, OsRefused: an image cannot be read or written.
    """
    flags = {(timer.holder, timer.descriptor): timer.flags for timer in armed_timerfds(images)}
    mend_timers(images, advance)
    pids = {process.pid_inside: process.threads for process in tree.processes}
    mend_waits(images, by_image_thread(images, waits, pids), advance)
    return tuple(
        replace(timer, flags=flags[timer.holder, timer.descriptor]) for timer in armed_timerfds(images)
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
    inside = {_pid_inside(pid): pid for pid in descendants((root,), all_processes())}
    return inside.get


def await_instant(at_ns: Nanoseconds) -> None:
    """Return when this process reads CLOCK_BOOTTIME as `at_ns`."""
    left_ns = at_ns - time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    if left_ns > 0:
        time.sleep(left_ns / SECOND)


def _pid_inside(pid: Pid) -> int:
    """The pid's number in its own namespace; 0 if it has ended."""
    try:
        with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as stream:
            numbers = next((line for line in stream if line.startswith("NSpid:")), "0").split()
    except OSError:
        return 0
    return int(numbers[-1])
