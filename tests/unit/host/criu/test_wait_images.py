"""A thread that was interrupted in its wait makes its call again, with what remained: or is left as it is."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest

from ckpt.host.criu.imagefile import read_entry, write_entries
from ckpt.host.criu.memory import read_memory, write_memory
from ckpt.host.criu.pb import image
from ckpt.host.criu.waits import by_image_thread, mend_waits
from ckpt.model.clocks import ClockAdvance, PendingWait
from ckpt.units import SECOND, Nanoseconds, Pid

TASK, THREAD = Pid(7), Pid(8)
EINTR = -4 & (1 << 64) - 1
AFTER_CALL = 0x1002
MEMORY = 0x7000_0000_0FF8
"""Sixteen bytes from here lie in two pages."""

STOOD_STILL = ClockAdvance()
WENT_ON = ClockAdvance(
    realtime_ns=Nanoseconds(2 * SECOND),
    monotonic_ns=Nanoseconds(2 * SECOND),
    boottime_ns=Nanoseconds(3 * SECOND),
)
POLL, NANOSLEEP, SIGTIMEDWAIT, FUTEX, RESTART, CLOCK_NANOSLEEP, EPOLL, PPOLL = (
    7,
    35,
    128,
    202,
    219,
    230,
    232,
    271,
)
MINUS_ONE = 0xFFFFFFFF


@pytest.fixture
def images(tmp_path: Path) -> Path:
    write_entries(
        tmp_path / "pstree.img",
        "PSTREE",
        [image.pstree_entry(pid=TASK, ppid=0, pgid=TASK, sid=TASK, threads=[TASK, THREAD])],
    )
    write_core(tmp_path, TASK, number=MINUS_ONE, result=0)
    pages = [image.pagemap_entry(vaddr=MEMORY // 4096 * 4096, compat_nr_pages=2, nr_pages=2, flags=4)]
    write_entries(tmp_path / "pagemap-7.img", "PAGEMAP", [image.pagemap_head(pages_id=1), *pages])
    (tmp_path / "pages-1.img").write_bytes(bytes(2 * 4096))
    return tmp_path


def fill(message: Any) -> None:
    """Give every field that must be there its least value."""
    while missing := message.FindInitializationErrors():
        for path in missing:
            *parents, name = path.split(".")
            parent = message
            for each in parents:
                parent = getattr(parent, each)
            if parent.DESCRIPTOR.fields_by_name[name].message_type is not None:
                getattr(parent, name).SetInParent()
            else:
                setattr(parent, name, parent.DESCRIPTOR.fields_by_name[name].default_value)


def write_core(
    images: Path,
    thread: Pid,
    *,
    number: int,
    result: int = EINTR,
    signals: tuple[int, ...] = (),
    **arguments: int,
) -> None:
    core = image.core_entry(mtype=1)
    if thread == TASK:
        core.tc.task_state = core.tc.exit_code = core.tc.personality = core.tc.flags = core.tc.blk_sigset = 0
        core.tc.comm = "x"
        for signal in signals:
            core.tc.signals_s.signals.add(siginfo=struct.pack("=i", signal).ljust(128, b"\0"))
    registers = core.thread_info.gpregs
    registers.orig_ax, registers.ax, registers.ip = number, result, AFTER_CALL
    for name, value in arguments.items():
        setattr(registers, name, value)
    core.thread_core.blk_sigset = 1 << (12 - 1)
    fill(core)
    write_entries(images / f"core-{thread}.img", "CORE", [core])


def registers_of(images: Path, thread: Pid = THREAD) -> Any:
    return read_entry(images / f"core-{thread}.img", "CORE", "core_entry").thread_info.gpregs


def wait(call: str, left_s: float | None, clock: str = "CLOCK_MONOTONIC") -> dict[Pid, PendingWait]:
    left = None if left_s is None else Nanoseconds(int(left_s * SECOND))
    return {THREAD: PendingWait(pid=TASK, thread=THREAD, call=call, clock=clock, left_ns=left)}


def restarted(images: Path, number: int) -> bool:
    registers = registers_of(images)
    return (registers.ax, registers.ip) == (number, AFTER_CALL - 2)


@pytest.mark.parametrize(
    ("number", "arguments"),
    [
        (POLL, {"dx": MINUS_ONE}),
        (EPOLL, {"r10": MINUS_ONE}),
        (SIGTIMEDWAIT, {}),
        (FUTEX, {"si": 9 | 128, "r10": MEMORY}),
        (POLL, {"dx": 40}),
    ],
    ids=["poll", "epoll_wait", "sigwaitinfo", "futex-until", "poll-short"],
)
def test_what_has_no_end_or_a_fixed_or_a_near_one_begins_again_as_it_was(
    images: Path, number: int, arguments: dict[str, int]
) -> None:
    write_core(images, THREAD, number=number, **arguments)
    assert mend_waits(images, {}, STOOD_STILL) == 1
    assert restarted(images, number)
    assert {name: getattr(registers_of(images), name) for name in arguments} == arguments


@pytest.mark.parametrize(("number", "register"), [(POLL, "dx"), (EPOLL, "r10")])
def test_a_timeout_in_a_register_becomes_what_remains_of_it(images: Path, number: int, register: str) -> None:
    write_core(images, THREAD, number=number, **{register: 9000})
    assert mend_waits(images, wait("poll", 5.0001), WENT_ON) == 1
    assert restarted(images, number)
    assert getattr(registers_of(images), register) == 3001


def test_a_sleep_with_a_place_for_its_rest_goes_on_with_that(images: Path) -> None:
    write_core(images, THREAD, number=NANOSLEEP, di=0x5000, si=MEMORY)
    assert write_memory(images, TASK, MEMORY, struct.pack("=qq", 7, 500))
    assert mend_waits(images, {}, WENT_ON) == 1
    assert restarted(images, NANOSLEEP)
    assert registers_of(images).di == MEMORY
    assert read_memory(images, TASK, MEMORY, 16) == struct.pack("=qq", 5, 500)


def test_a_sleep_without_such_a_place_becomes_a_poll_of_nothing(images: Path) -> None:
    write_core(images, THREAD, number=CLOCK_NANOSLEEP, di=7, dx=0x5000)
    assert mend_waits(images, wait("clock_nanosleep", 10, "CLOCK_BOOTTIME"), WENT_ON) == 1
    assert restarted(images, POLL)
    registers = registers_of(images)
    assert (registers.di, registers.si, registers.dx) == (0, 0, 7000)


def test_a_call_that_was_begun_again_before_is_known_by_its_record(images: Path) -> None:
    write_core(images, THREAD, number=RESTART, dx=MINUS_ONE)
    assert mend_waits(images, {}, STOOD_STILL) == 0
    assert mend_waits(images, wait("poll", None), STOOD_STILL) == 1
    assert restarted(images, POLL)


def test_a_rest_that_the_kernel_wrote_for_ppoll_is_shortened_by_what_passed(images: Path) -> None:
    write_core(images, THREAD, number=PPOLL, result=PPOLL, dx=MEMORY)
    write_memory(images, TASK, MEMORY, struct.pack("=qq", 1, 0))
    mend_waits(images, {}, WENT_ON)
    assert read_memory(images, TASK, MEMORY, 16) == bytes(16)
    assert registers_of(images).ip == AFTER_CALL


@pytest.mark.parametrize(
    ("number", "result", "arguments"),
    [
        (POLL, EINTR, {"dx": 9000}),
        (NANOSLEEP, EINTR, {"di": 0x5000}),
        (FUTEX, EINTR, {"r10": 0x5000}),
        (EPOLL, 0, {"r10": MINUS_ONE}),
        (0, EINTR, {}),
    ],
    ids=["poll", "nanosleep", "futex-span", "epoll-that-returned", "read"],
)
def test_what_is_not_known_or_not_interrupted_is_left_as_it_is(
    images: Path, number: int, result: int, arguments: dict[str, int]
) -> None:
    write_core(images, THREAD, number=number, result=result, **arguments)
    before = (images / "core-8.img").read_bytes()
    assert mend_waits(images, {}, WENT_ON) == 0
    assert (images / "core-8.img").read_bytes() == before


def test_a_thread_that_has_a_signal_to_handle_was_interrupted_by_it(images: Path) -> None:
    write_core(images, THREAD, number=POLL, dx=MINUS_ONE)
    write_core(images, TASK, number=MINUS_ONE, result=0, signals=(10,))
    assert mend_waits(images, {}, STOOD_STILL) == 0
    # It blocks this one.
    write_core(images, TASK, number=MINUS_ONE, result=0, signals=(12,))
    assert mend_waits(images, {}, STOOD_STILL) == 1


def test_waits_are_matched_with_the_threads_of_the_images_by_their_order(images: Path) -> None:
    records = tuple(
        PendingWait(pid=Pid(400), thread=Pid(number), call="poll", clock="CLOCK_MONOTONIC", left_ns=None)
        for number in (400, 431, 999)
    )
    found = by_image_thread(images, records, {TASK: (Pid(400), Pid(431))})
    assert {thread: each.thread for thread, each in found.items()} == {TASK: 400, THREAD: 431}
    assert by_image_thread(images, records, {TASK: (Pid(400),)}) == {}


def test_memory_that_is_not_in_the_images_is_not_there(images: Path) -> None:
    assert read_memory(images, TASK, MEMORY + 2 * 4096, 16) is None
    assert not write_memory(images, TASK, MEMORY + 2 * 4096 - 16, bytes(17))
