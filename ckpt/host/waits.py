"""How long the threads of a workload still have to wait in the system calls that they stand in.

A freeze interrupts a timed wait, and the kernel then keeps its end where nobody can read it (restart_block). So
the waits are looked at just before the freeze, and confirmed under it. /proc/PID/task/TID/syscall has the call and its
arguments, and so the time that was asked for; when it ends is found by ckpt.host.sleep_ends.

Rules: what cannot be told for sure is not known. Under the freeze a thread costs a short read or two, and has run
once at most since it was looked at: for the freeze.
Source: proc_pid_syscall(5), restart_syscall(2), Documentation/scheduler/sched-stats.rst.
"""

from __future__ import annotations

import os
import platform
import struct
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final

from ckpt.host.sleep_ends import ends_of
from ckpt.model.clocks import PendingWait
from ckpt.units import MILLISECOND, PAGE_BYTES, SECOND, Nanoseconds, Pid

_MACHINE: Final = "x86_64"
"""The numbers below are of this one; on others nothing is known."""

_POLL: Final = 7
_NANOSLEEP: Final = 35
_FUTEX: Final = 202
_RESTART: Final = 219
_CLOCK_NANOSLEEP: Final = 230
_EPOLL_WAIT: Final = 232
_EPOLL_PWAIT: Final = 281
_CALLS: Final = {
    _POLL: "poll",
    _NANOSLEEP: "nanosleep",
    _FUTEX: "futex",
    _CLOCK_NANOSLEEP: "clock_nanosleep",
    _EPOLL_WAIT: "epoll_wait",
    _EPOLL_PWAIT: "epoll_pwait",
}
_FUTEX_COMMAND: Final = 0x7F
_FUTEX_WAIT: Final = 0
_ABSTIME: Final = 1
_CLOCKS: Final = {0: "CLOCK_MONOTONIC", 1: "CLOCK_MONOTONIC", 7: "CLOCK_BOOTTIME"}
"""A relative sleep on CLOCK_REALTIME is measured by CLOCK_MONOTONIC."""

_TIMESPEC: Final = struct.Struct("=qq")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sleep:
    """A thread in a timed wait.

    `timeout_ns` is how long it was to last when it began, None where it has begun again since. `due_ns` is its end on
    our CLOCK_MONOTONIC, None where that is not known.
    `runs` counts how often the thread was given a CPU, `switches` how often it gave it up by itself.
    """

    pid: Pid
    thread: Pid
    call: str
    clock: str
    timeout_ns: Nanoseconds | None
    due_ns: Nanoseconds | None
    runs: int
    switches: int


def look(pids: Iterable[Pid]) -> tuple[Sleep, ...]:
    """The timed waits of these processes now, for confirm(); at most 0.2 ms a thread and CPU."""
    if platform.machine() != _MACHINE:
        return ()
    sleeps = [sleep for pid in pids for sleep in _sleeps_of(pid)]
    ends = ends_of(
        [(sleep.pid, sleep.thread, sleep.timeout_ns) for sleep in sleeps if sleep.timeout_ns is not None]
    )
    return tuple(replace(sleep, due_ns=ends.get(sleep.thread)) for sleep in sleeps)


def confirm(sleeps: Iterable[Sleep], frozen_at: Nanoseconds) -> tuple[PendingWait, ...]:
    """Those that the freeze interrupted, and what remained of them.

    Args:
        sleeps: What look() gave just before the freeze.
        frozen_at: CLOCK_MONOTONIC, as this process reads it, at the freeze.
    """
    return tuple(
        PendingWait(
            pid=sleep.pid,
            thread=sleep.thread,
            call=sleep.call,
            clock=sleep.clock,
            left_ns=None if sleep.due_ns is None else Nanoseconds(sleep.due_ns - frozen_at),
        )
        for sleep in sleeps
        if _is_the_same(sleep)
    )


def _is_the_same(sleep: Sleep) -> bool:
    # The freeze of cgroup version 2 wakes the thread once; that of version 1 lets it lie.
    if _runs(sleep.pid, sleep.thread) in (sleep.runs, sleep.runs + 1):
        return True
    # It was perhaps not let to the end of that one run at once: the longer file tells.
    return _switches(sleep.pid, sleep.thread) in (sleep.switches, sleep.switches + 1)


def _sleeps_of(pid: Pid) -> Iterator[Sleep]:
    with suppress(OSError):
        for name in os.listdir(f"/proc/{pid}/task"):
            sleep = _sleep_of(pid, Pid(int(name)))
            if sleep is not None:
                yield sleep


def _sleep_of(pid: Pid, thread: Pid) -> Sleep | None:
    runs, switches = _runs(pid, thread), _switches(pid, thread)
    words = _read(f"/proc/{pid}/task/{thread}/syscall").split()
    if len(words) != 9 or runs < 0:  # a thread that runs has the one word "running"
        return None
    number, *arguments = (int(word, 0) for word in words[:7])
    restarted = number == _RESTART
    if restarted:
        number = _restarted(pid, thread, arguments)
    if number not in _CALLS or (number == _FUTEX and arguments[1] & _FUTEX_COMMAND != _FUTEX_WAIT):
        return None
    timeout_ns, clock = _asked_for(pid, number, arguments)
    if timeout_ns is None and not restarted:
        return None
    return Sleep(
        pid=pid,
        thread=thread,
        call=_CALLS[number],
        clock=clock,
        # When one began that was restarted is not known: its end neither.
        timeout_ns=None if restarted else timeout_ns,
        due_ns=None,
        runs=runs,
        switches=switches,
    )


def _restarted(pid: Pid, thread: Pid, arguments: list[int]) -> int:
    """The call that restart_syscall(2) goes on with, whose arguments the registers still have."""
    place = _read(f"/proc/{pid}/task/{thread}/wchan")
    if "poll" in place:
        return _POLL
    if "futex" in place:
        return _FUTEX
    # The first argument of one is an address, that of the other a small number.
    return _NANOSLEEP if arguments[0] >= PAGE_BYTES else _CLOCK_NANOSLEEP


def _asked_for(pid: Pid, number: int, arguments: list[int]) -> tuple[Nanoseconds | None, str]:
    """The relative timeout of a call, None for an absolute one or none at all; and its clock."""
    if number in (_POLL, _EPOLL_WAIT, _EPOLL_PWAIT):
        (timeout_ms,) = struct.unpack(
            "=i", (arguments[2 if number == _POLL else 3] & 0xFFFFFFFF).to_bytes(4, "little")
        )
        return Nanoseconds(timeout_ms * MILLISECOND) if timeout_ms >= 0 else None, _CLOCKS[1]
    if number == _NANOSLEEP:
        return _timespec(pid, arguments[0]), _CLOCKS[1]
    if number == _FUTEX:
        return _timespec(pid, arguments[3]) if arguments[3] else None, _CLOCKS[1]
    clock = _CLOCKS.get(arguments[0])
    if clock is None or arguments[1] & _ABSTIME:
        return None, clock or ""
    return _timespec(pid, arguments[2]), clock


def _timespec(pid: Pid, address: int) -> Nanoseconds | None:
    with (
        suppress(OSError, OverflowError, struct.error),
        open(f"/proc/{pid}/mem", "rb", buffering=0) as memory,
    ):
        seconds, nanoseconds = _TIMESPEC.unpack(os.pread(memory.fileno(), _TIMESPEC.size, address))
        if seconds >= 0 and 0 <= nanoseconds < SECOND:
            return Nanoseconds(seconds * SECOND + nanoseconds)
    return None


def _runs(pid: Pid, thread: Pid) -> int:
    """How often a thread was given a CPU; -1 where the kernel does not count it, or the thread has ended."""
    words = _read(f"/proc/{pid}/task/{thread}/schedstat").split()
    return int(words[2]) if len(words) == 3 else -1


def _switches(pid: Pid, thread: Pid) -> int:
    """How often a thread gave up its CPU by itself; -1 where it has ended."""
    _, _, rest = _read(f"/proc/{pid}/task/{thread}/status").partition("\nvoluntary_ctxt_switches:")
    words = rest.split(maxsplit=1)
    return int(words[0]) if words else -1


def _read(path: str) -> str:
    try:
        with open(path, "rb", buffering=0) as stream:
            return stream.read().decode(errors="replace")
    except OSError:
        return ""
