"""The timers in an image set: which are pending, and how to bring them back right.

What CRIU stores is the time that remains (timerfd: files.img; POSIX timers and itimers: core-PID.img), read when
it came to the task; rewind_timers() makes it what remained at the freeze.

Errors of CRIU 4.2.1 that mend_timers() cures, seen in tests/system/test_criu_timers.py:
  * An absolute timerfd is restored as "now plus what remains", but only the whole seconds of "now" are added
    (criu/pie/restorer.c, timerfd_arm): it fires up to a second early. Without TFD_TIMERABSTIME in the
    image it fires when it should.
  * A periodic timerfd that has expired and was not read has nothing left: it is restored disarmed and never
    fires again (criu issue 3162). With one interval left it goes on.
And one that is left to ckpt.host.timerfds: CRIU arms timerfds long before the tasks go on.
Source: images/timer.proto, images/timerfd.proto; timerfd_create(2), timer_create(2), setitimer(2).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from ckpt.errors import OsRefused
from ckpt.host.criu.imagefile import read_entries, write_entries
from ckpt.host.criu.pstree import read_tasks
from ckpt.host.criu.timens import instant_path, read_instant
from ckpt.host.criu.timerfd_images import (
    ABSTIME,
    WALL_CLOCKS,
    after,
    armed_entries,
    descriptor_table,
    descriptors,
)
from ckpt.model.clocks import ClockAdvance, ClockTarget, PendingTimer, TimerKind
from ckpt.units import Nanoseconds, Pid

_COARSE: Final = 5
"""CLOCK_REALTIME_COARSE"""

_STOOD_STILL: Final = ClockAdvance()
_SECOND: Final = 1_000_000_000
_MICROSECOND: Final = 1_000
_CLOCKS: Final = {
    0: "CLOCK_REALTIME",
    1: "CLOCK_MONOTONIC",
    2: "CLOCK_PROCESS_CPUTIME_ID",
    3: "CLOCK_THREAD_CPUTIME_ID",
    7: "CLOCK_BOOTTIME",
    8: "CLOCK_REALTIME_ALARM",
    9: "CLOCK_BOOTTIME_ALARM",
    11: "CLOCK_TAI",
}
_MONOTONIC_CLOCKS: Final = frozenset((1,))
_BOOTTIME_CLOCKS: Final = frozenset((7, 9))


def pending_timers(images: Path) -> tuple[PendingTimer, ...]:
    """The armed timers of an image set; a timerfd that several tasks share is given once for each.

    Raises:
        ObjectCorrupt, OsRefused: an image cannot be read.
    """
    pids = [task.pid for task in read_tasks(images)]
    found: list[PendingTimer] = []
    for pid in pids:
        for core in read_entries(images / f"core-{pid}.img", "CORE", "core_entry"):
            found += _timers_of(pid, core)
    found += _timerfds(images, pids)
    return tuple(found)


def mend_timers(images: Path, advance: ClockAdvance = _STOOD_STILL) -> int:
    """Let the timers of an image set fire when their clocks say so; the number of timers that were changed.

    With an `advance`, what remains is shortened by what passed on the timer's clock; what is due then fires
    at once, and a periodic timerfd counts what it missed. Relative timers on CLOCK_REALTIME count
    CLOCK_MONOTONIC, as in the kernel. Of POSIX timers the image does not say whether they were absolute: they
    are taken as relative.

    Raises:
        ObjectCorrupt, OsRefused: an image cannot be read or written.
    """
    changed = _mend_timerfds(images / "files.img", advance)
    if advance.monotonic_ns or advance.boottime_ns:
        for task in read_tasks(images):
            changed += _change_core(images / f"core-{task.pid}.img", advance)
    return changed


def rewind_timers(images: Path, frozen: ClockTarget) -> int:
    """Let what remains of each timer be what remained at the freeze; the number of timers that were changed.

    CRIU reads the timers of a task when it comes to it, and that can be seconds after the freeze. When that was
    is told by the files that it wrote then, compared with the clocks that it wrote into the set at the end.

    Args:
        images: The set as CRIU left it, with its own instant still in it.
        frozen: What the clocks of the tasks read at the freeze.

    Raises:
        ObjectCorrupt, OsRefused: an image cannot be read or written.
    """
    ended = read_instant(images)
    longest_ns = max(0, ended.monotonic_ns - frozen.monotonic_ns)
    frozen_at_ns = _modified_ns(instant_path(images)) - longest_ns

    # The times of files go on by ticks: rather a tick too late than too early.
    tick_ns = int(time.clock_getres(_COARSE) * _SECOND)

    def since_freeze_ns(path: Path) -> int:
        return min(longest_ns, max(0, _modified_ns(path) - frozen_at_ns + tick_ns))

    changed = 0
    for task in read_tasks(images):
        # They are read right after the memory; core-PID.img is written when all threads are done.
        pages = images / f"pagemap-{task.pid}.img"
        if pages.is_file():  # a zombie has none
            changed += _change_core(images / f"core-{task.pid}.img", _by(-since_freeze_ns(pages)))
    timers = armed_entries(images)
    late: dict[int, int] = {}
    for pid, _, file in descriptors(images, timers.keys()):
        if file not in late:
            late[file] = since_freeze_ns(descriptor_table(images, pid))
    return changed + _change_timerfds(
        images / "files.img",
        lambda entry: _lengthen(entry.tfd, late.get(entry.id, 0)) if entry.HasField("tfd") else False,
    )


def _mend_timerfds(path: Path, advance: ClockAdvance) -> int:
    return _change_timerfds(
        path, lambda entry: _mend_timerfd(entry.tfd, advance) if entry.HasField("tfd") else False
    )


def _change_timerfds(path: Path, change: Callable[[Any], bool]) -> int:
    entries = read_entries(path, "FILES", "file_entry")
    changed = sum(map(change, entries))
    if changed:
        write_entries(path, "FILES", entries)
    return changed


def _mend_timerfd(timer: Any, advance: ClockAdvance) -> bool:
    before = timer.SerializeToString()
    absolute = bool(timer.settime_flags & ABSTIME)
    timer.settime_flags &= ~ABSTIME
    left_ns = timer.vsec * _SECOND + timer.vnsec
    interval_ns = timer.isec * _SECOND + timer.insec
    if not left_ns and timer.ticks:
        left_ns = interval_ns
    if left_ns:
        left_ns, missed = after(left_ns, interval_ns, _passed(timer.clockid, advance, absolute=absolute))
        timer.ticks += missed
        timer.vsec, timer.vnsec = divmod(left_ns, _SECOND)
    return bool(timer.SerializeToString() != before)


def _lengthen(timer: Any, by_ns: int) -> bool:
    left_ns = timer.vsec * _SECOND + timer.vnsec
    if not left_ns or not by_ns:
        return False
    timer.vsec, timer.vnsec = divmod(left_ns + by_ns, _SECOND)
    return True


def _passed(clock: int, advance: ClockAdvance, *, absolute: bool) -> int:
    if clock in WALL_CLOCKS:
        return advance.realtime_ns if absolute else advance.monotonic_ns
    if clock in _MONOTONIC_CLOCKS:
        return advance.monotonic_ns
    if clock in _BOOTTIME_CLOCKS:
        return advance.boottime_ns
    return 0


def _by(ns: int) -> ClockAdvance:
    return ClockAdvance(
        realtime_ns=Nanoseconds(ns), monotonic_ns=Nanoseconds(ns), boottime_ns=Nanoseconds(ns)
    )


def _change_core(path: Path, advance: ClockAdvance) -> int:
    entries = read_entries(path, "CORE", "core_entry")
    changed = 0
    for core in entries:
        if not core.tc.HasField("timers"):
            continue
        timers = core.tc.timers
        before = timers.SerializeToString()
        _shorten(timers.real, "vusec", _MICROSECOND, advance.monotonic_ns)
        for timer in timers.posix:
            _shorten(timer, "vnsec", 1, _passed(timer.clock_id, advance, absolute=False))
        changed += timers.SerializeToString() != before
    if changed:
        write_entries(path, "CORE", entries)
    return changed


def _shorten(timer: Any, fraction: str, unit_ns: int, passed_ns: int) -> None:
    left_ns = timer.vsec * _SECOND + getattr(timer, fraction) * unit_ns
    if left_ns and passed_ns:
        timer.vsec, rest_ns = divmod(max(unit_ns, left_ns - passed_ns), _SECOND)
        setattr(timer, fraction, rest_ns // unit_ns)


def _timers_of(pid: Pid, core: Any) -> Iterator[PendingTimer]:
    if not core.tc.HasField("timers"):
        return
    timers = core.tc.timers
    for clock, timer in (
        ("ITIMER_REAL", timers.real),
        ("ITIMER_VIRTUAL", timers.virt),
        ("ITIMER_PROF", timers.prof),
    ):
        left_ns = timer.vsec * _SECOND + timer.vusec * _MICROSECOND
        if left_ns:
            yield _pending(
                pid, TimerKind.ITIMER, clock, left_ns, timer.isec * _SECOND + timer.iusec * _MICROSECOND
            )
    for timer in timers.posix:
        left_ns = timer.vsec * _SECOND + timer.vnsec
        if left_ns:
            yield _pending(
                pid, TimerKind.POSIX, _name(timer.clock_id), left_ns, timer.isec * _SECOND + timer.insec
            )


def _timerfds(images: Path, pids: Iterable[Pid]) -> Iterator[PendingTimer]:
    armed = {file: timer for file, timer in armed_entries(images).items() if timer.vsec or timer.vnsec}
    for pid, _, file in descriptors(images, armed.keys(), pids):
        timer = armed[file]
        yield _pending(
            pid,
            TimerKind.TIMERFD,
            _name(timer.clockid),
            timer.vsec * _SECOND + timer.vnsec,
            timer.isec * _SECOND + timer.insec,
        )


def _modified_ns(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError as error:
        raise OsRefused(operation="read", subject=str(path), reason=os.strerror(error.errno or 0)) from error


def _pending(pid: Pid, kind: TimerKind, clock: str, value_ns: int, interval_ns: int) -> PendingTimer:
    return PendingTimer(
        pid=pid,
        kind=kind,
        clock=clock,
        value_ns=Nanoseconds(value_ns),
        interval_ns=Nanoseconds(interval_ns),
    )


def _name(clock: int) -> str:
    return _CLOCKS.get(clock, f"clock {clock}")
