"""What remains of the timers in an image set: at the freeze, and after what passed on their clocks."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from ckpt.host.criu.imagefile import read_entries, read_entry, write_entries
from ckpt.host.criu.pb import image
from ckpt.host.criu.timerfd_images import ArmedTimerfd, armed_timerfds
from ckpt.host.criu.timers import mend_timers, pending_timers, rewind_timers, wall_timers
from ckpt.host.posix_timers import PosixEnds
from ckpt.model.clocks import ClockAdvance, ClockTarget
from ckpt.units import SECOND, Nanoseconds, Pid

MS = 1_000_000
NOW_NS = 1_700_000_000 * SECOND
FROZEN_AT = Nanoseconds(NOW_NS - SECOND // 2)
#: The instant that CRIU wrote into the set, half a second after the freeze.
ENDED = ClockTarget(monotonic_ns=Nanoseconds(100 * SECOND), boottime_ns=Nanoseconds(200 * SECOND))
FROZEN = ClockTarget(
    monotonic_ns=Nanoseconds(ENDED.monotonic_ns - SECOND // 2),
    boottime_ns=Nanoseconds(ENDED.boottime_ns - SECOND // 2),
)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    write_entries(
        tmp_path / "pstree.img", "PSTREE", [image.pstree_entry(pid=7, ppid=0, pgid=7, sid=7, threads=[7])]
    )
    entry = image.timens_entry()
    entry.monotonic.tv_sec, entry.monotonic.tv_nsec = divmod(ENDED.monotonic_ns, SECOND)
    entry.boottime.tv_sec, entry.boottime.tv_nsec = divmod(ENDED.boottime_ns, SECOND)
    write_entries(tmp_path / "timens-0.img", "TIMENS", [entry])
    ids = {
        **{f"{kind}_ns_id": 1 for kind in ("pid", "net", "ipc", "uts", "mnt", "user", "cgroup", "time")},
        "vm_id": 1,
        "files_id": 2,
        "fs_id": 1,
        "sighand_id": 1,
    }
    write_entries(tmp_path / "ids-7.img", "IDS", [image.task_kobj_ids_entry(**ids)])
    write_entries(tmp_path / "fdinfo-2.img", "FDINFO", [image.fdinfo_entry(id=1, flags=0, type=17, fd=5)])
    core = image.core_entry(mtype=1)
    core.tc.task_state = core.tc.exit_code = core.tc.personality = core.tc.flags = core.tc.blk_sigset = 0
    core.tc.comm = "x"
    for timer in (core.tc.timers.real, core.tc.timers.virt, core.tc.timers.prof):
        timer.isec = timer.iusec = timer.vsec = timer.vusec = 0
    core.tc.timers.real.vsec = core.tc.timers.virt.vsec = 3
    write_entries(tmp_path / "core-7.img", "CORE", [core])
    return tmp_path


def write_timerfd(images: Path, **values: int) -> None:
    entry = image.file_entry(type=17, id=1)
    fields = {"clockid": 1, "ticks": 0, "settime_flags": 0, "vsec": 0, "vnsec": 0, "isec": 0, "insec": 0}
    for name, value in (fields | values | {"id": 1, "flags": 0}).items():
        setattr(entry.tfd, name, value)
    owner = entry.tfd.fown
    owner.uid = owner.euid = owner.signum = owner.pid_type = owner.pid = 0
    write_entries(images / "files.img", "FILES", [entry])


def write_posix_timers(images: Path, *timers: tuple[int, int]) -> None:
    """The clock of each, and what is left of it."""
    [core] = read_entries(images / "core-7.img", "CORE", "core_entry")
    for number, (clock, left_ns) in enumerate(timers):
        entry = core.tc.timers.posix.add(it_id=number, clock_id=clock, si_signo=10, it_sigev_notify=0)
        entry.sival_ptr = entry.overrun = entry.isec = entry.insec = 0
        entry.vsec, entry.vnsec = divmod(left_ns, SECOND)
    write_entries(images / "core-7.img", "CORE", [core])


def posix_left_ns(images: Path) -> list[int]:
    timers = read_entry(images / "core-7.img", "CORE", "core_entry").tc.timers.posix
    return [timer.vsec * SECOND + timer.vnsec for timer in timers]


def timerfd(images: Path) -> Any:
    return read_entries(images / "files.img", "FILES", "file_entry")[0].tfd


def was_written(path: Path, at_ns: int) -> None:
    os.utime(path, ns=(at_ns, at_ns))


def test_what_remained_when_criu_came_to_a_timer_becomes_what_remained_at_the_freeze(images: Path) -> None:
    write_timerfd(images, vsec=2)
    # CRIU was kept from writing the instant that it had read: that does not matter.
    was_written(images / "timens-0.img", NOW_NS + 50 * MS)
    was_written(images / "fdinfo-2.img", NOW_NS - 400 * MS)
    was_written(images / "core-7.img", NOW_NS - 100 * MS)
    assert rewind_timers(images, FROZEN, FROZEN_AT) == 2
    timers = read_entry(images / "core-7.img", "CORE", "core_entry").tc.timers
    # Rather a tick too late than too early: ten milliseconds at most.
    assert 100 * MS <= timerfd(images).vnsec <= 110 * MS
    assert 400_000 <= timers.real.vusec <= 410_000
    assert (timers.virt.vsec, timers.virt.vusec) == (3, 0)


def test_a_posix_timer_of_the_wall_clock_is_told_from_a_span_and_follows_that_clock(images: Path) -> None:
    was_written(images / "timens-0.img", NOW_NS)
    write_entries(images / "files.img", "FILES", [])
    # CRIU came to them 393 ms after the freeze.
    write_posix_timers(images, (0, 5 * SECOND - 393 * MS), (0, 5 * SECOND - 393 * MS + 700_000))
    was_written(images / "core-7.img", NOW_NS - 100 * MS)
    ends = PosixEnds(monotonic=(5 * SECOND + 700_000, 90 * SECOND), realtime=(5 * SECOND, 60 * SECOND))
    rewind_timers(images, FROZEN, FROZEN_AT, ends)
    assert posix_left_ns(images)[0] == 5 * SECOND
    timers = [timer for timer in pending_timers(images, ends) if timer.clock == "CLOCK_REALTIME"]
    assert [timer.absolute for timer in timers] == [True, False]
    assert wall_timers(images, timers) == {7: {0: 5 * SECOND}}
    span_ns = posix_left_ns(images)[1]
    advance = ClockAdvance(realtime_ns=Nanoseconds(-2 * SECOND), monotonic_ns=Nanoseconds(SECOND))
    mend_timers(images, advance, timers)
    assert posix_left_ns(images) == [7 * SECOND, span_ns - SECOND]


def test_the_timers_of_a_process_with_threads_were_read_before_the_first_of_its_threads_was_written(
    images: Path,
) -> None:
    write_timerfd(images)
    leader = image.pstree_entry(pid=7, ppid=0, pgid=7, sid=7, threads=[7, 8, 9])
    write_entries(images / "pstree.img", "PSTREE", [leader])
    was_written(images / "timens-0.img", NOW_NS)
    was_written(images / "core-7.img", NOW_NS - 50 * MS)
    for thread, ago_ms in ((8, 200), (9, 100)):
        (images / f"core-{thread}.img").touch()
        was_written(images / f"core-{thread}.img", NOW_NS - ago_ms * MS)
    rewind_timers(images, FROZEN, FROZEN_AT)
    timers = read_entry(images / "core-7.img", "CORE", "core_entry").tc.timers
    assert 300_000 <= timers.real.vusec <= 310_000


@pytest.mark.parametrize("at_ns", [0, NOW_NS * 2])
def test_files_of_other_times_shift_no_timer_by_more_than_the_dump_took(images: Path, at_ns: int) -> None:
    write_timerfd(images, vsec=2)
    was_written(images / "timens-0.img", NOW_NS)
    was_written(images / "fdinfo-2.img", at_ns)
    rewind_timers(images, FROZEN, FROZEN_AT)
    left_ns = timerfd(images).vsec * SECOND + timerfd(images).vnsec
    assert 2 * SECOND <= left_ns <= 2 * SECOND + SECOND // 2


def test_a_periodic_timerfd_counts_what_it_missed_and_keeps_its_beat(images: Path) -> None:
    write_timerfd(images, vsec=1, isec=2, ticks=1)
    advance = ClockAdvance(monotonic_ns=Nanoseconds(6 * SECOND))
    mend_timers(images, advance)
    # It fired at 1, 3 and 5 s.
    assert (timerfd(images).ticks, timerfd(images).vsec, timerfd(images).vnsec) == (4, 1, 0)


def test_a_timerfd_that_is_due_to_the_nanosecond_is_not_disarmed(images: Path) -> None:
    write_timerfd(images, vsec=2)
    mend_timers(images, ClockAdvance(monotonic_ns=Nanoseconds(2 * SECOND)))
    assert (timerfd(images).vsec, timerfd(images).vnsec) == (0, 1)


def test_a_timerfd_is_found_with_a_holder_and_told_from_one_of_the_wall_clock(images: Path) -> None:
    write_timerfd(images, vsec=2, clockid=0, settime_flags=3)
    (timer,) = armed_timerfds(images)
    assert timer == ArmedTimerfd(
        holder=Pid(7),
        descriptor=5,
        clock=0,
        flags=3,
        left_ns=Nanoseconds(2 * SECOND),
        interval_ns=Nanoseconds(0),
        ticks=0,
    )
    assert timer.is_of_the_wall_clock
    assert timer.later(-SECOND).left_ns == 3 * SECOND
