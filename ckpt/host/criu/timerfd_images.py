"""The timerfds in an image set, and who holds them.

Source: images/timerfd.proto, images/fdinfo.proto; timerfd_create(2).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Self

from ckpt.host.criu.imagefile import read_entries
from ckpt.host.criu.pstree import read_tasks, task_ids
from ckpt.units import SECOND, Nanoseconds, Pid

ABSTIME: Final = 1
"""TFD_TIMER_ABSTIME"""

WALL_CLOCKS: Final = frozenset((0, 8, 11))
"""CLOCK_REALTIME, CLOCK_REALTIME_ALARM, CLOCK_TAI: an absolute timer on one of them expires at a time of the wall
clock, wherever the task was meanwhile."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmedTimerfd:
    """A timerfd as the images have it.

    `holder` is a process that has it, as CRIU's images call it, under the number `descriptor`. `clock` and `flags`
    are those of timerfd_create(2) and timerfd_settime(2); `ticks` are expirations that were not read.
    """

    holder: Pid
    descriptor: int
    clock: int
    flags: int
    left_ns: Nanoseconds
    interval_ns: Nanoseconds
    ticks: int

    @property
    def is_of_the_wall_clock(self) -> bool:
        """Whether it fires at a time of the wall clock."""
        return bool(self.flags & ABSTIME) and self.clock in WALL_CLOCKS

    def later(self, passed_ns: int) -> Self:
        """The same timer when so much has passed on its clock; less than zero goes back."""
        left_ns, missed = after(self.left_ns, self.interval_ns, passed_ns)
        return replace(self, left_ns=Nanoseconds(left_ns), ticks=self.ticks + missed)


def armed_timerfds(images: Path) -> tuple[ArmedTimerfd, ...]:
    """The timerfds of an image set that are armed or have expired, each once, as they are in the images.

    Raises:
        ObjectCorrupt, OsRefused: an image cannot be read.
    """
    timers = armed_entries(images)
    found: dict[int, ArmedTimerfd] = {}
    for pid, descriptor, file in descriptors(images, timers.keys()):
        timer = timers[file]
        found.setdefault(
            file,
            ArmedTimerfd(
                holder=pid,
                descriptor=descriptor,
                clock=timer.clockid,
                flags=timer.settime_flags,
                left_ns=Nanoseconds(timer.vsec * SECOND + timer.vnsec),
                interval_ns=Nanoseconds(timer.isec * SECOND + timer.insec),
                ticks=timer.ticks,
            ),
        )
    return tuple(found.values())


def after(left_ns: int, interval_ns: int, passed_ns: int) -> tuple[int, int]:
    """What is left of a timer when so much has passed, and how often a periodic one has fired meanwhile."""
    left_ns -= passed_ns
    if left_ns > 0 or not interval_ns:
        return max(1, left_ns), 0
    # As the kernel counts them when it is read after a suspend (fs/timerfd.c, timerfd_read).
    missed, over_ns = divmod(-left_ns, interval_ns)
    return interval_ns - over_ns, 1 + missed


def armed_entries(images: Path) -> dict[int, Any]:
    """The timerfds that are armed or have expired, by the number of the file."""
    return {
        entry.id: entry.tfd
        for entry in read_entries(images / "files.img", "FILES", "file_entry")
        if entry.HasField("tfd") and (entry.tfd.vsec or entry.tfd.vnsec or entry.tfd.ticks)
    }


def descriptors(
    images: Path, files: Collection[int], pids: Iterable[Pid] | None = None
) -> Iterator[tuple[Pid, int, int]]:
    """Who holds these files: the process, a descriptor of it, and the number of the file, once a process."""
    if not files:
        return
    for pid in [task.pid for task in read_tasks(images)] if pids is None else pids:
        table = descriptor_table(images, pid)
        if not table.is_file():
            continue
        held = {entry.id: entry.fd for entry in read_entries(table, "FDINFO", "fdinfo_entry")}
        yield from ((pid, held[file], file) for file in sorted(held.keys() & files))


def descriptor_table(images: Path, pid: Pid) -> Path:
    """The image file with the descriptors of a process, which CRIU writes when it has looked at its files."""
    return images / f"fdinfo-{task_ids(images, pid).files_id}.img"
