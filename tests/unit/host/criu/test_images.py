"""Image files: what is read is what was written, and what lies is refused."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckpt.errors import CkptError, ObjectCorrupt, OsRefused, RestoreFailed
from ckpt.host.criu.complete import check_complete
from ckpt.host.criu.imagefile import read_entries, read_entry, write_entries
from ckpt.host.criu.pb import MAGIC, image
from ckpt.host.criu.pstree import read_inventory, read_tasks
from ckpt.host.criu.statistics import read_dump_statistics, read_restore_statistics
from ckpt.host.criu.timens import read_instant, write_instant
from ckpt.host.criu.timers import mend_timers, pending_timers
from ckpt.model.clocks import ClockAdvance, ClockTarget, PendingTimer, TimerKind
from ckpt.units import Nanoseconds, Pid


def make_pstree(images: Path) -> None:
    write_entries(
        images / "pstree.img",
        "PSTREE",
        [image.pstree_entry(pid=7, ppid=0, pgid=7, sid=7, threads=[7, 8])],
    )


def make_ids(**changes: int) -> Any:
    ids = {
        f"{kind}_ns_id": number
        for number, kind in enumerate(("pid", "net", "ipc", "uts", "mnt", "user", "cgroup", "time"), 1)
    }
    return image.task_kobj_ids_entry(
        **({"vm_id": 1, "files_id": 1, "fs_id": 1, "sighand_id": 1} | ids | changes)
    )


def make_inventory(images: Path) -> None:
    entry = image.inventory_entry(
        img_version=2, root_ids=make_ids(), dump_criu_run_id="3f0b03b8-0ab3-49df-badb-e3063e5406cf"
    )
    write_entries(images / "inventory.img", "INVENTORY", [entry])


def make_timens(images: Path, name: str = "timens-0.img") -> None:
    entry = image.timens_entry()
    entry.monotonic.tv_sec, entry.monotonic.tv_nsec = 5, 6
    entry.boottime.tv_sec, entry.boottime.tv_nsec = 7, 999_999_999
    write_entries(images / name, "TIMENS", [entry])


def make_core(images: Path) -> None:
    core = image.core_entry(mtype=1)
    core.tc.task_state = core.tc.exit_code = core.tc.personality = core.tc.flags = core.tc.blk_sigset = 0
    core.tc.comm = "x"
    timers = core.tc.timers
    for timer in (timers.real, timers.virt, timers.prof):
        timer.isec = timer.iusec = timer.vsec = timer.vusec = 0
    timers.real.vsec, timers.real.vusec, timers.real.isec = 3, 500_000, 1
    timers.posix.add(
        it_id=0,
        clock_id=7,
        si_signo=10,
        it_sigev_notify=0,
        sival_ptr=0,
        overrun=0,
        isec=0,
        insec=0,
        vsec=2,
        vnsec=5,
    )
    write_entries(images / "core-7.img", "CORE", [core])


def make_files(images: Path, *timers: dict[str, int]) -> None:
    entries = []
    for number, values in enumerate(timers, 1):
        entry = image.file_entry(type=17, id=number)
        fields = {"clockid": 1, "ticks": 0, "settime_flags": 0, "vsec": 0, "vnsec": 0, "isec": 0, "insec": 0}
        for name, value in (fields | values | {"id": number, "flags": 0}).items():
            setattr(entry.tfd, name, value)
        entry.tfd.fown.uid = entry.tfd.fown.euid = entry.tfd.fown.signum = entry.tfd.fown.pid_type = (
            entry.tfd.fown.pid
        ) = 0
        entries.append(entry)
    write_entries(images / "files.img", "FILES", entries)
    write_entries(images / "ids-7.img", "IDS", [make_ids(files_id=2)])
    write_entries(
        images / "fdinfo-2.img",
        "FDINFO",
        [image.fdinfo_entry(id=number, flags=0, type=17, fd=number) for number in range(1, len(timers) + 1)],
    )


def make_pagemap(images: Path, *entries: Any, pages_id: int = 1) -> None:
    write_entries(
        images / f"pagemap-{pages_id}.img", "PAGEMAP", [image.pagemap_head(pages_id=pages_id), *entries]
    )


def timerfd(images: Path, number: int = 0) -> Any:
    return read_entries(images / "files.img", "FILES", "file_entry")[number].tfd


def test_what_was_written_is_read(tmp_path: Path) -> None:
    make_pstree(tmp_path)
    (task,) = read_tasks(tmp_path)
    assert (task.pid, task.parent, task.threads) == (7, 0, (7, 8))


def test_a_zombie_has_its_own_thread_whatever_criu_wrote_for_it(tmp_path: Path) -> None:
    # CRIU 4.2.1 writes memory that it never set.
    zombie = image.pstree_entry(pid=9, ppid=7, pgid=7, sid=7, threads=[2480639056])
    write_entries(tmp_path / "pstree.img", "PSTREE", [zombie])
    (task,) = read_tasks(tmp_path)
    assert task.threads == (9,)


def test_an_inventory_has_one_magic_and_the_others_two(tmp_path: Path) -> None:
    make_inventory(tmp_path)
    make_pstree(tmp_path)
    assert struct.unpack_from("<I", (tmp_path / "inventory.img").read_bytes()) == (MAGIC["INVENTORY"],)
    assert struct.unpack_from("<II", (tmp_path / "pstree.img").read_bytes()) == (
        MAGIC["IMG_COMMON"],
        MAGIC["PSTREE"],
    )


def test_an_unchanged_image_is_written_back_byte_for_byte(tmp_path: Path) -> None:
    make_core(tmp_path)
    path = tmp_path / "core-7.img"
    before = path.read_bytes()
    write_entries(path, "CORE", read_entries(path, "CORE", "core_entry"))
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda content: content[:6], "too few"),
        (lambda content: b"\0" * 8 + content[8:], "does not begin"),
        (lambda content: content[:-1], "are left"),
        (lambda content: content + b"\1\0", "ends within the size"),
        (lambda content: content + struct.pack("<I", 0xFFFFFFFF), "4294967295 bytes"),
        (lambda content: content + struct.pack("<I", 2) + b"\xff\xff", "cannot be decoded"),
        (lambda content: content + struct.pack("<I", 0), "is not whole"),
        (lambda content: content + content[8:], "2 entries"),
    ],
)
def test_a_damaged_image_is_refused_with_the_reason(tmp_path: Path, damage: Any, reason: str) -> None:
    make_timens(tmp_path)
    path = tmp_path / "timens-0.img"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ObjectCorrupt, match=reason):
        read_entry(path, "TIMENS", "timens_entry")


@given(content=st.binary(max_size=200))
def test_any_bytes_give_values_or_an_error_of_ours(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.img"
    path.write_bytes(struct.pack("<II", MAGIC["IMG_COMMON"], MAGIC["FILES"]) + content)
    try:
        read_entries(path, "FILES", "file_entry")
    except CkptError:
        return


def test_a_missing_image_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OsRefused, match="No such file"):
        read_tasks(tmp_path)


def test_a_length_behind_a_message_is_checked(tmp_path: Path) -> None:
    path = tmp_path / "pipes-data.img"
    write_entries(path, "PIPES_DATA", [image.pipe_data_entry(pipe_id=1, bytes=5, size=4096)])
    path.write_bytes(path.read_bytes() + b"12345")

    def extra(entry: Any) -> int:
        return int(entry.bytes)

    assert len(read_entries(path, "PIPES_DATA", "pipe_data_entry", extra_bytes=extra)) == 1
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ObjectCorrupt, match="5 bytes must follow"):
        read_entries(path, "PIPES_DATA", "pipe_data_entry", extra_bytes=extra)


def test_the_namespaces_that_differ_from_criu_are_the_own_ones(tmp_path: Path) -> None:
    make_inventory(tmp_path)
    make_pstree(tmp_path)
    write_entries(tmp_path / "ids-7.img", "IDS", [make_ids(pid_ns_id=20, mnt_ns_id=21)])
    inventory = read_inventory(tmp_path)
    assert inventory.own_namespaces == {"pid", "mnt"}
    assert inventory.run_id == "3f0b03b8-0ab3-49df-badb-e3063e5406cf"


def test_the_instant_is_written_to_every_timens_image(tmp_path: Path) -> None:
    make_timens(tmp_path)
    make_timens(tmp_path, "timens-9.img")
    assert read_instant(tmp_path) == ClockTarget(
        monotonic_ns=Nanoseconds(5_000_000_006), boottime_ns=Nanoseconds(7_999_999_999)
    )
    instant = ClockTarget(monotonic_ns=Nanoseconds(1_000_000_001), boottime_ns=Nanoseconds(2_999_999_999))
    write_instant(tmp_path, instant)
    assert read_instant(tmp_path) == instant
    (tmp_path / "timens-0.img").unlink()
    assert read_instant(tmp_path) == instant


def test_an_instant_that_does_not_change_changes_no_byte(tmp_path: Path) -> None:
    make_timens(tmp_path)
    before = (tmp_path / "timens-0.img").read_bytes()
    write_instant(tmp_path, read_instant(tmp_path))
    assert (tmp_path / "timens-0.img").read_bytes() == before


def test_an_image_set_without_an_instant_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ObjectCorrupt, match="no timens"):
        read_instant(tmp_path)


def test_the_statistics_are_nanoseconds_and_count_shared_pages(tmp_path: Path) -> None:
    entry = image.stats_entry()
    for name, value in {
        "freezing_time": 1, "frozen_time": 2, "memdump_time": 3, "memwrite_time": 4, "pages_scanned": 5,
        "pages_skipped_parent": 0, "pages_written": 6, "pages_lazy": 0, "shpages_scanned": 10, "shpages_written": 20,
    }.items():  # fmt: skip
        setattr(entry.dump, name, value)
    write_entries(tmp_path / "stats-dump", "STATS", [entry])
    statistics = read_dump_statistics(tmp_path / "stats-dump")
    assert (statistics.freezing_ns, statistics.frozen_ns) == (1000, 2000)
    assert (statistics.pages_scanned, statistics.pages_written) == (15, 26)
    with pytest.raises(ObjectCorrupt, match="no figures of a restore"):
        read_restore_statistics(tmp_path / "stats-dump")


def make_complete(images: Path) -> None:
    make_inventory(images)
    make_pstree(images)
    make_pagemap(
        images,
        image.pagemap_entry(vaddr=0x1000, compat_nr_pages=1, nr_pages=2, flags=4),
        image.pagemap_entry(vaddr=0x9000, compat_nr_pages=7, flags=1),
        image.pagemap_entry(vaddr=0xA000, compat_nr_pages=1),
        image.pagemap_entry(vaddr=0xB000, compat_nr_pages=9, in_parent=True),
    )
    (images / "pages-1.img").write_bytes(b"\0" * 3 * 4096)


def test_a_complete_image_set_passes(tmp_path: Path) -> None:
    make_complete(tmp_path)
    check_complete(tmp_path)


@pytest.mark.parametrize("name", ["inventory.img", "pstree.img", "pages-1.img"])
def test_an_image_set_that_lacks_a_file_is_refused(tmp_path: Path, name: str) -> None:
    make_complete(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(RestoreFailed, match=name):
        check_complete(tmp_path)


def test_a_pages_file_that_is_too_short_is_refused(tmp_path: Path) -> None:
    make_complete(tmp_path)
    (tmp_path / "pages-1.img").write_bytes(b"\0" * (3 * 4096 - 1))
    with pytest.raises(RestoreFailed, match=r"has 12287 bytes, and its page map needs 12288"):
        check_complete(tmp_path)


def test_the_pending_timers_are_listed_with_their_holder(tmp_path: Path) -> None:
    make_pstree(tmp_path)
    make_core(tmp_path)
    make_files(tmp_path, {"vsec": 9, "clockid": 0}, {"isec": 4})
    assert pending_timers(tmp_path) == (
        PendingTimer(
            pid=Pid(7), kind=TimerKind.ITIMER, clock="ITIMER_REAL",
            value_ns=Nanoseconds(3_500_000_000), interval_ns=Nanoseconds(1_000_000_000), absolute=False,
        ),
        PendingTimer(
            pid=Pid(7), kind=TimerKind.POSIX, clock="CLOCK_BOOTTIME",
            value_ns=Nanoseconds(2_000_000_005), interval_ns=Nanoseconds(0), absolute=False,
        ),
        PendingTimer(
            pid=Pid(7), kind=TimerKind.TIMERFD, clock="CLOCK_REALTIME",
            value_ns=Nanoseconds(9_000_000_000), interval_ns=Nanoseconds(0), absolute=False,
        ),
    )  # fmt: skip


def test_absolute_timerfds_become_relative_ones(tmp_path: Path) -> None:
    make_pstree(tmp_path)
    make_files(tmp_path, {"vsec": 9, "settime_flags": 3})
    assert mend_timers(tmp_path) == 1
    assert (timerfd(tmp_path).settime_flags, timerfd(tmp_path).vsec) == (2, 9)
    before = (tmp_path / "files.img").read_bytes()
    assert mend_timers(tmp_path) == 0
    assert (tmp_path / "files.img").read_bytes() == before


def test_a_periodic_timerfd_that_was_due_goes_on(tmp_path: Path) -> None:
    make_pstree(tmp_path)
    make_files(tmp_path, {"isec": 2, "ticks": 3}, {"isec": 2})
    assert mend_timers(tmp_path) == 1
    assert timerfd(tmp_path, 0).vsec == 2
    # Never armed: an interval alone arms nothing (timerfd_settime(2)).
    assert timerfd(tmp_path, 1).vsec == 0


def test_an_advance_shortens_what_remains_on_each_clock(tmp_path: Path) -> None:
    make_pstree(tmp_path)
    make_core(tmp_path)
    make_files(
        tmp_path,
        {"vsec": 100, "clockid": 0, "settime_flags": 1},
        {"vsec": 100, "clockid": 0},
        {"vsec": 100, "clockid": 7},
        {"vsec": 1, "clockid": 1},
    )
    advance = ClockAdvance(
        realtime_ns=Nanoseconds(30_000_000_000),
        monotonic_ns=Nanoseconds(2_000_000_000),
        boottime_ns=Nanoseconds(1_000_000_000),
    )
    assert mend_timers(tmp_path, advance) == 5
    assert [timerfd(tmp_path, number).vsec for number in range(4)] == [70, 98, 99, 0]
    assert timerfd(tmp_path, 3).vnsec == 1
    left = {
        timer.clock: timer.value_ns for timer in pending_timers(tmp_path) if timer.kind != TimerKind.TIMERFD
    }
    assert left == {"ITIMER_REAL": 1_500_000_000, "CLOCK_BOOTTIME": 1_000_000_005}


_READ_WITH_LITTLE = """
import resource, sys
from pathlib import Path
from ckpt.host.criu.imagefile import read_entry
resource.setrlimit(resource.RLIMIT_AS, (900 << 20, 900 << 20))
print(read_entry(Path(sys.argv[1]), "INVENTORY", "inventory_entry").img_version)
"""


def test_a_small_image_is_read_where_there_is_no_room_for_the_biggest(tmp_path: Path) -> None:
    path = tmp_path / "inventory.img"
    write_entries(path, "INVENTORY", [image.inventory_entry(img_version=2)])
    done = subprocess.run(
        [sys.executable, "-c", _READ_WITH_LITTLE, str(path)], check=False, capture_output=True, text=True
    )
    assert done.stdout == "2\n", done.stderr
