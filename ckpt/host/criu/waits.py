"""The system calls in which the threads of an image set were interrupted, and how they go on waiting.

CRIU lets most of them begin again by itself; mend_waits() does the rest (ckpt.host.restarting, docs/clocks.md).

Rule: a thread for which a signal waits is left as it is: -EINTR is right for it.
Source: compel/arch/x86/src/lib/infect.c (get_task_regs); images/core-x86.proto.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ckpt.host.criu.imagefile import read_entry, write_entries
from ckpt.host.criu.memory import read_memory, write_memory
from ckpt.host.criu.pstree import read_tasks
from ckpt.host.restarting import InterruptedCall
from ckpt.model.clocks import ClockAdvance, PendingWait
from ckpt.units import Pid

_X86_64: Final = 1  # core_entry.mtype
_NATIVE: Final = 1  # user_x86_regs_mode
_SYSCALL_BYTES: Final = 2  # of the instruction "syscall"
_FILTERED: Final = 2  # SECCOMP_MODE_FILTER
_SIGNAL: Final = struct.Struct("=i")


def mend_waits(images: Path, waits: Mapping[Pid, PendingWait], advance: ClockAdvance) -> int:
    """Let the threads of an image set wait on where they waited; the number of threads that were changed.

    Args:
        images: The image set.
        waits: What is known of the waits, by the thread as the images call it.
        advance: How far the clocks went on since the freeze: what remains is shortened by it.

    Raises:
        ObjectCorrupt, OsRefused: an image cannot be read or written.
    """
    changed = 0
    for task in read_tasks(images):
        shared: tuple[int, ...] = ()
        # The leader is first: it has the signals of the process.
        for thread in (task.pid, *(thread for thread in task.threads if thread != task.pid)):
            path = images / f"core-{thread}.img"
            core = read_entry(path, "CORE", "core_entry")
            if thread == task.pid:
                shared = _signals(core.tc.signals_s)
            # A zombie has no registers.
            if core.mtype != _X86_64 or not core.HasField("thread_info") or _is_signalled(core, shared):
                continue
            if _restart(core, _ImageMemory(images=images, pid=task.pid), waits.get(thread), advance):
                write_entries(path, "CORE", [core])
                changed += 1
    return changed


def by_image_thread(
    images: Path, waits: Iterable[PendingWait], pids: Mapping[Pid, tuple[Pid, ...]]
) -> dict[Pid, PendingWait]:
    """The waits by the threads as the images call them.

    Args:
        images: The image set.
        waits: Those of a checkpoint; those of other trees are left out.
        pids: By each process as the images call it: its threads as the host that dumped it saw them.

    Raises:
        ObjectCorrupt, OsRefused: pstree.img cannot be read.
    """
    known = {wait.thread: wait for wait in waits}
    found: dict[Pid, PendingWait] = {}
    for task in read_tasks(images):
        outside = pids.get(task.pid, ())
        inside = (task.pid, *sorted(thread for thread in task.threads if thread != task.pid))
        # Both lists have the leader first, and the others in the order of their making.
        if len(outside) == len(inside):
            found |= {
                thread: known[seen] for thread, seen in zip(inside, outside, strict=True) if seen in known
            }
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class _ImageMemory:
    """Fits ckpt.host.restarting.Memory."""

    images: Path
    pid: Pid

    def read(self, address: int, size: int) -> bytes | None:
        return read_memory(self.images, self.pid, address, size)

    def write(self, address: int, content: bytes) -> object:
        return write_memory(self.images, self.pid, address, content)


def _restart(core: Any, memory: _ImageMemory, wait: PendingWait | None, advance: ClockAdvance) -> bool:
    """Let a thread make its call again; whether its registers were changed."""
    registers = core.thread_info.gpregs
    if registers.mode != _NATIVE:
        return False
    # A filter that lets a thread sleep may not let it poll.
    filtered = _FILTERED in (core.thread_core.seccomp_mode, core.tc.old_seccomp_mode)
    call = InterruptedCall(
        registers=registers, memory=memory, wait=wait, advance=advance, may_poll=not filtered
    )
    if registers.ax == registers.orig_ax:  # CRIU lets it begin again
        call.shorten()
        return False
    number = call.prepare()
    if number is None:
        return False
    registers.ax = number
    registers.ip -= _SYSCALL_BYTES
    return True


def _is_signalled(core: Any, shared: tuple[int, ...]) -> bool:
    """Whether a signal that the thread does not block waits for it."""
    blocked = (core.thread_core if core.thread_core.HasField("blk_sigset") else core.tc).blk_sigset
    own = _signals(core.thread_core.signals_p)
    return any(not blocked >> (number - 1) & 1 for number in (*own, *shared))


def _signals(queue: Any) -> tuple[int, ...]:
    return tuple(
        _SIGNAL.unpack_from(entry.siginfo)[0] for entry in queue.signals if len(entry.siginfo) >= _SIGNAL.size
    )
