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
from collections.abc import Callable, Collection, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

from ckpt.errors import OsRefused
from ckpt.host.criu.clock_names import CLOCKS
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
from ckpt.host.posix_timers import NO_ENDS, PosixEnds, wall_clock_ends
from ckpt.model.clocks import ClockAdvance, ClockTarget, PendingTimer, TimerKind
from ckpt.units import Nanoseconds, Pid

_COARSE: Final = 5
"""CLOCK_REALTIME_COARSE"""

_REALTIME: Final = 0
_STOOD_STILL: Final = ClockAdvance()
_SECOND: Final = 1_000_000_000
_MICROSECOND: Final = 1_000
_MONOTONIC_CLOCKS: Final = frozenset((1,))
_BOOTTIME_CLOCKS: Final = frozenset((7, 9))

_Key = tuple[Pid, str, int]
"""What tells a timer from all others, in an image set and among the checkpoint's: its process, clock and remainder."""


def pending_timers(images: Path, ends: PosixEnds = NO_ENDS) -> tuple[PendingTimer, ...]:
    """The armed timers of an image set; a timerfd that several tasks share is given once for each.

    Args:
        images: The set, as rewind_timers() left it.
        ends: What rewind_timers() was given: the POSIX timers among them are of the wall clock.

    Raises:
        ObjectCorrupt, OsRefused: an image cannot be read.
    """
    pids = [task.pid for task in read_tasks(images)]
    found: list[PendingTimer] = []
    for pid in pids:
        for core in read_entries(images / f"core-{pid}.img", "CORE", "core_entry"):
            found += _timers_of(pid, core, ends)
    found += _timerfds(images, pids)
    return tuple(found)


def mend_timers(
    images: Path, advance: ClockAdvance = _STOOD_STILL, timers: Iterable[PendingTimer] = ()
) -> int:
    """Let the timers of an image set fire when their clocks say so; the number of timers that were changed.

    With an `advance`, what remains is shortened by what passed on the timer's clock; what is due then fires
    at once, and a periodic timerfd counts what it missed. Relative timers on CLOCK_REALTIME count
    CLOCK_MONOTONIC, as in the kernel. Of POSIX timers the image does not say whether they were absolute: `timers`,
    those of the checkpoint, do.

    Raises:
        ObjectCorrupt, OsRefused: an image cannot be read or written.
    """
    changed = _mend_timerfds(images / "files.img", advance)
    if advance != _STOOD_STILL:
        absolute = {_key(timer) for timer in timers if timer.kind is TimerKind.POSIX and timer.absolute}
        for task in read_tasks(images):
            changed += _change_core(
                images / f"core-{task.pid}.img", partial(_advance, task.pid, advance, absolute)
            )
    return changed


def wall_timers(images: Path, timers: Iterable[PendingTimer]) -> dict[Pid, dict[int, Nanoseconds]]:
    """The POSIX timers that fire at a time of CLOCK_REALTIME: what remains of each, by its process and number there.

    Args:
        images: The set before mend_timers().
        timers: Those of the checkpoint.

    Raises:
        ObjectCorrupt, OsRefused: an image cannot be read.
    """
    absolute = {_key(timer) for timer in timers if timer.kind is TimerKind.POSIX and timer.absolute}
    found: dict[Pid, dict[int, Nanoseconds]] = {}
    for pid in {pid for pid, clock, _ in absolute if clock == CLOCKS[_REALTIME]}:
        path = images / f"core-{pid}.img"
        if path.is_file():  # else it is a process of another tree
            found[pid] = {
                timer.it_id: Nanoseconds(_left_ns(timer))
                for core in read_entries(path, "CORE", "core_entry")
                for timer in core.tc.timers.posix
                if timer.clock_id == _REALTIME and (pid, CLOCKS[_REALTIME], _left_ns(timer)) in absolute
            }
    return found


def rewind_timers(
    images: Path, frozen: ClockTarget, frozen_at: Nanoseconds, ends: PosixEnds = NO_ENDS
) -> int:
    """Let what remains of each timer be what remained at the freeze; the number of timers that were changed.

    CRIU reads the timers of a task when it comes to it, and that can be seconds after the freeze. When that was
    is told by the files that it wrote next: a timer may fire late, never early.

    Args:
        images: The set as CRIU left it, with its own instant still in it.
        frozen: What the clocks of the tasks read at the freeze.
        frozen_at: What CLOCK_REALTIME read then.
        ends: What remained of the POSIX timers on this machine: those of the wall clock are found by it, and set
            to the nanosecond.

    Raises:
        ObjectCorrupt, OsRefused: an image cannot be read or written.
    """
    ended = read_instant(images)
    longest_ns = max(0, ended.monotonic_ns - frozen.monotonic_ns)
    # By CRIU's own instant as well: the wall clock may have been set back since the freeze.
    frozen_at_ns = min(frozen_at, _modified_ns(instant_path(images)) - longest_ns)

    # The times of files go on by ticks: rather a tick too late than too early.
    tick_ns = int(time.clock_getres(_COARSE) * _SECOND)

    def since_freeze_ns(path: Path) -> int:
        return min(longest_ns, max(0, _modified_ns(path) - frozen_at_ns + tick_ns))

    changed = 0
    for task in read_tasks(images):
        # The threads' images are written right after the timers were read, the leader's last of all.
        cores = [images / f"core-{thread}.img" for thread in {task.pid, *task.threads}]
        since_ns = min(since_freeze_ns(core) for core in cores)
        changed += _change_core(images / f"core-{task.pid}.img", partial(_rewind, since_ns, ends))
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
    left_ns = _left_ns(timer)
    interval_ns = timer.isec * _SECOND + timer.insec
    if not left_ns and timer.ticks:
        left_ns = interval_ns
    if left_ns:
        left_ns, missed = after(left_ns, interval_ns, _passed(timer.clockid, advance, absolute=absolute))
        timer.ticks += missed
        timer.vsec, timer.vnsec = divmod(left_ns, _SECOND)
    return bool(timer.SerializeToString() != before)


def _lengthen(timer: Any, by_ns: int) -> bool:
    left_ns = _left_ns(timer)
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


def _change_core(path: Path, change: Callable[[Any], None]) -> int:
    entries = read_entries(path, "CORE", "core_entry")
    changed = 0
    for core in entries:
        if not core.tc.HasField("timers"):
            continue
        timers = core.tc.timers
        before = timers.SerializeToString()
        change(timers)
        changed += timers.SerializeToString() != before
    if changed:
        write_entries(path, "CORE", entries)
    return changed


def _advance(pid: Pid, advance: ClockAdvance, absolute: Collection[_Key], timers: Any) -> None:
    _shorten(timers.real, "vusec", _MICROSECOND, advance.monotonic_ns)
    for timer in timers.posix:
        is_absolute = (pid, _name(timer.clock_id), _left_ns(timer)) in absolute
        _shorten(timer, "vnsec", 1, _passed(timer.clock_id, advance, absolute=is_absolute))


def _rewind(by_ns: int, ends: PosixEnds, timers: Any) -> None:
    _shorten(timers.real, "vusec", _MICROSECOND, -by_ns)
    armed = [timer for timer in timers.posix if _left_ns(timer)]
    for timer in armed:
        if timer.clock_id in WALL_CLOCKS | _MONOTONIC_CLOCKS | _BOOTTIME_CLOCKS:
            _shorten(timer, "vnsec", 1, -by_ns)
    known = wall_clock_ends([(timer.clock_id, _left_ns(timer)) for timer in armed], ends)
    for place, left_ns in known.items():
        armed[place].vsec, armed[place].vnsec = divmod(max(1, left_ns), _SECOND)


def _shorten(timer: Any, fraction: str, unit_ns: int, passed_ns: int) -> None:
    left_ns = timer.vsec * _SECOND + getattr(timer, fraction) * unit_ns
    if left_ns and passed_ns:
        timer.vsec, rest_ns = divmod(max(unit_ns, left_ns - passed_ns), _SECOND)
        setattr(timer, fraction, rest_ns // unit_ns)


def _timers_of(pid: Pid, core: Any, ends: PosixEnds) -> Iterator[PendingTimer]:
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
        left_ns = _left_ns(timer)
        if left_ns:
            yield _pending(
                pid,
                TimerKind.POSIX,
                _name(timer.clock_id),
                left_ns,
                timer.isec * _SECOND + timer.insec,
                absolute=ends.has(timer.clock_id, left_ns),
            )


def _timerfds(images: Path, pids: Iterable[Pid]) -> Iterator[PendingTimer]:
    armed = {file: timer for file, timer in armed_entries(images).items() if timer.vsec or timer.vnsec}
    for pid, _, file in descriptors(images, armed.keys(), pids):
        timer = armed[file]
        yield _pending(
            pid,
            TimerKind.TIMERFD,
            _name(timer.clockid),
            _left_ns(timer),
            timer.isec * _SECOND + timer.insec,
            absolute=timer.clockid in WALL_CLOCKS and bool(timer.settime_flags & ABSTIME),
        )


def _modified_ns(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError as error:
        raise OsRefused(operation="read", subject=str(path), reason=os.strerror(error.errno or 0)) from error


def _left_ns(timer: Any) -> int:
    """What remains of a timerfd or a POSIX timer."""
    return int(timer.vsec * _SECOND + timer.vnsec)


def _key(timer: PendingTimer) -> _Key:
    return timer.pid, timer.clock, timer.value_ns


def _pending(
    pid: Pid, kind: TimerKind, clock: str, value_ns: int, interval_ns: int, *, absolute: bool = False
) -> PendingTimer:
    return PendingTimer(
        pid=pid,
        kind=kind,
        clock=clock,
        value_ns=Nanoseconds(value_ns),
        interval_ns=Nanoseconds(interval_ns),
        absolute=absolute,
    )


def _name(clock: int) -> str:
    return CLOCKS.get(clock, f"clock {clock}")
