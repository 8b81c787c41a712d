"""The timers in an image set: which are pending, and how to bring them back right.

What CRIU stores is the time that remains (timerfd: files.img; POSIX timers and itimers: core-PID.img).

Two errors of CRIU 4.2.1 are cured by mend_timers(), both seen in tests/system/test_criu_timers.py:
  * An absolute timerfd is restored as "now plus what remains", but only the whole seconds of "now" are added
    (criu/pie/restorer.c, restore_timerfds): it fires up to a second early. Without TFD_TIMER_ABSTIME in the
    image it fires when it should.
  * A periodic timerfd that has expired and was not read has nothing left: it is restored disarmed and never
    fires again (criu issue 3162). With one interval left it goes on.
Source: images/timer.proto, images/timerfd.proto; timerfd_create(2), timer_create(2), setitimer(2).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from ckpt.host.criu.imagefile import read_entries, write_entries
from ckpt.host.criu.pstree import read_tasks, task_ids
from ckpt.model.clocks import ClockAdvance, PendingTimer, TimerKind
from ckpt.units import Nanoseconds, Pid

_ABSTIME: Final = 1
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
# An absolute timer on one of these expires at a time of the wall clock, wherever the task was meanwhile.
_WALL_CLOCKS: Final = frozenset((0, 8, 11))
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
    at once. Relative timers on CLOCK_REALTIME count CLOCK_MONOTONIC, as in the kernel. Of POSIX timers the
    image does not say whether they were absolute: they are taken as relative.

    Raises:
        ObjectCorrupt, OsRefused: an image cannot be read or written.
    """
    changed = _mend_timerfds(images / "files.img", advance)
    if advance.monotonic_ns or advance.boottime_ns:
        for task in read_tasks(images):
            changed += _shorten_core(images / f"core-{task.pid}.img", advance)
    return changed


def _mend_timerfds(path: Path, advance: ClockAdvance) -> int:
    entries = read_entries(path, "FILES", "file_entry")
    changed = sum(_mend_timerfd(entry.tfd, advance) for entry in entries if entry.HasField("tfd"))
    if changed:
        write_entries(path, "FILES", entries)
    return changed


def _mend_timerfd(timer: Any, advance: ClockAdvance) -> bool:
    before = timer.SerializeToString()
    absolute = bool(timer.settime_flags & _ABSTIME)
    timer.settime_flags &= ~_ABSTIME
    left_ns = timer.vsec * _SECOND + timer.vnsec
    interval_ns = timer.isec * _SECOND + timer.insec
    if left_ns:
        left_ns = max(1, left_ns - _passed(timer.clockid, advance, absolute=absolute))
    elif interval_ns and timer.ticks:
        left_ns = interval_ns
    timer.vsec, timer.vnsec = divmod(left_ns, _SECOND)
    return bool(timer.SerializeToString() != before)


def _passed(clock: int, advance: ClockAdvance, *, absolute: bool) -> int:
    if clock in _WALL_CLOCKS:
        return advance.realtime_ns if absolute else advance.monotonic_ns
    if clock in _MONOTONIC_CLOCKS:
        return advance.monotonic_ns
    if clock in _BOOTTIME_CLOCKS:
        return advance.boottime_ns
    return 0


def _shorten_core(path: Path, advance: ClockAdvance) -> int:
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
    armed = {
        entry.id: entry.tfd
        for entry in read_entries(images / "files.img", "FILES", "file_entry")
        if entry.HasField("tfd") and (entry.tfd.vsec or entry.tfd.vnsec)
    }
    if not armed:
        return
    for pid in pids:
        table = images / f"fdinfo-{task_ids(images, pid).files_id}.img"
        if not table.is_file():
            continue
        held = {entry.id for entry in read_entries(table, "FDINFO", "fdinfo_entry")}
        for number in sorted(held & armed.keys()):
            timer = armed[number]
            yield _pending(
                pid,
                TimerKind.TIMERFD,
                _name(timer.clockid),
                timer.vsec * _SECOND + timer.vnsec,
                timer.isec * _SECOND + timer.insec,
            )


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
