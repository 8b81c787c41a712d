"""The waits of a workload that goes on after its dump: CRIU has let them end with -EINTR.

They are mended while the workload is let go: each of these threads stands for a moment in a stop within the kernel's
handling of signals, and is told that its call was interrupted (-ERESTARTNOHAND). So the kernel itself lets the call
begin again when it lets the thread go on, or gives -EINTR after all where a signal with a handler has come meanwhile.

Rules:
- A thread that is traced here goes on by itself when this process dies (no PTRACE_O_EXITKILL): with EINTR at worst.
- Only threads in such calls are touched; about 0.2 ms each. Whatever fails with one, it runs on.
- All of it is done by one thread: the kernel knows tracers by their thread.
Source: arch_do_signal_or_restart() of the kernel (x86); ptrace(2).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from ckpt.host.ptrace_requests import (
    DETACH,
    EVENT_STOP,
    INTERRUPT,
    ORIG_RAX,
    RAX,
    SEIZE,
    get_registers,
    request,
    set_registers,
    supported,
)
from ckpt.host.restarting import InterruptedCall, may_be_interrupted
from ckpt.model.clocks import ClockAdvance, PendingWait
from ckpt.units import Nanoseconds, Pid

_ERESTARTNOHAND: Final = -514 & (1 << 64) - 1
_PLACES: Final = {"di": 14, "si": 13, "dx": 12, "r10": 7, "r8": 9}
"""In struct user_regs_struct of <sys/user.h>."""

_WALL: Final = 0x40000000
_STOP_TIMEOUT_S: Final = 5.0
_POLL_S: Final = 0.0002


def go_on(
    pids: Collection[Pid],
    waits: Iterable[PendingWait],
    frozen_at: Nanoseconds,
    thaw: Callable[[], None],
    *,
    filtered: Collection[Pid] = (),
) -> int:
    """Thaw a workload so that its threads wait on where they waited; how many do.

    Args:
        pids: The processes of the frozen workload, after CRIU has let go of them.
        waits: What was known of their waits at the freeze.
        frozen_at: CLOCK_MONOTONIC at the freeze: the time since then counts.
        thaw: Lets the workload go; called once, whatever happens.
        filtered: Those of the processes that have a seccomp filter.
    """
    traced = [thread for thread in _interrupted(pids) if _seize(thread[1])] if supported() else []
    thaw()
    known = {wait.thread: wait for wait in waits}
    passed = Nanoseconds(time.monotonic_ns() - frozen_at)
    advance = ClockAdvance(realtime_ns=passed, monotonic_ns=passed, boottime_ns=passed)
    deadline = time.monotonic() + _STOP_TIMEOUT_S
    changed = 0
    for pid, thread in traced:
        signal = 0
        with suppress(OSError, ValueError):
            signal = _await_stop(thread, deadline)
            # A signal on its way to the thread is why it was interrupted.
            if not signal:
                changed += _resume(pid, thread, known.get(thread), advance, may_poll=pid not in filtered)
        with suppress(OSError):
            request(DETACH, thread, 0, signal)
    return changed


@dataclass(slots=True, kw_only=True)
class _LiveRegisters:
    """Fits ckpt.host.restarting.Registers."""

    orig_ax: int
    ax: int
    di: int
    si: int
    dx: int
    r10: int
    r8: int


@dataclass(frozen=True, slots=True)
class _LiveMemory:
    """Fits ckpt.host.restarting.Memory."""

    pid: Pid

    def read(self, address: int, size: int) -> bytes | None:
        with suppress(OSError, OverflowError), open(f"/proc/{self.pid}/mem", "rb", buffering=0) as memory:
            return os.pread(memory.fileno(), size, address)
        return None

    def write(self, address: int, content: bytes) -> object:
        # What the kernel could write to, we can; else the thread waits a little longer.
        with suppress(OSError, OverflowError), open(f"/proc/{self.pid}/mem", "r+b", buffering=0) as memory:
            return os.pwrite(memory.fileno(), content, address)
        return None


def _interrupted(pids: Iterable[Pid]) -> list[tuple[Pid, Pid]]:
    """The threads in calls that may have been told EINTR, each with its process."""
    found = []
    for pid in pids:
        with suppress(OSError):
            for name in os.listdir(f"/proc/{pid}/task"):
                with open(f"/proc/{pid}/task/{name}/syscall", "rb", buffering=0) as stream:
                    words = stream.read().split()
                if len(words) == 9 and may_be_interrupted([int(word, 0) for word in words[:7]]):
                    found.append((pid, Pid(int(name))))
    return found


def _seize(thread: Pid) -> bool:
    try:
        request(SEIZE, thread)
        request(INTERRUPT, thread)
    except OSError:  # it has ended, or somebody else traces it
        return False
    return True


def _await_stop(thread: Pid, deadline: float) -> int:
    """Wait for the stop that was asked for: 0, or the signal that came before it.

    Raises:
        OSError: it has ended, or did not stop in time.
    """
    while True:
        pid, status = os.waitpid(thread, _WALL | os.WNOHANG)
        if pid:
            break
        if time.monotonic() > deadline:
            raise TimeoutError(thread)
        time.sleep(_POLL_S)
    if not os.WIFSTOPPED(status):
        raise ProcessLookupError(thread)
    return 0 if status >> 16 == EVENT_STOP else os.WSTOPSIG(status)


def _resume(
    pid: Pid, thread: Pid, wait: PendingWait | None, advance: ClockAdvance, *, may_poll: bool
) -> bool:
    values = list(get_registers(thread))
    registers = _LiveRegisters(
        orig_ax=values[ORIG_RAX], ax=values[RAX], **{name: values[place] for name, place in _PLACES.items()}
    )
    call = InterruptedCall(
        registers=registers, memory=_LiveMemory(pid), wait=wait, advance=advance, may_poll=may_poll
    )
    if registers.ax == registers.orig_ax:  # CRIU lets it begin again
        call.shorten()
        return False
    number = call.prepare()
    if number is None:
        return False
    for name, place in _PLACES.items():
        values[place] = getattr(registers, name)
    values[ORIG_RAX], values[RAX] = number, _ERESTARTNOHAND
    set_registers(thread, values)
    return True
