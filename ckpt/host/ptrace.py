"""The door to ptrace: stop processes with all their threads, and run system calls in them.

Rules:
- What a thread was doing is put back exactly when it is let go: registers, signal mask, a system call that waits
  for its restart, a restartable sequence.
- Nothing of the program's text is changed: a `syscall` instruction that is mapped already is used, the vdso's.
- Until it is let go a thread dies with its tracer (PTRACE_O_EXITKILL): it never runs on half prepared.
- All of it must be called from the one thread that called seize(): the kernel knows tracers by their thread.
- x86-64 only; supported() tells. 32-bit processes are refused.
Source: ptrace(2), signal(7) ("Interruption of system calls"), rseq(2).
"""

from __future__ import annotations

import errno
import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Final

from ckpt.host.process_table import thread_stat_of
from ckpt.host.ptrace_requests import O_SUSPEND_SECCOMP, supported, waiting_signals
from ckpt.host.traced_thread import CALL_TIMEOUT_S, MINUS_ONE, OPTIONS, STOP_TIMEOUT_S, TracedThread, refused
from ckpt.units import Pid

__all__ = ["CALL_TIMEOUT_S", "STOP_TIMEOUT_S", "Tracee", "seize", "supported"]

_ERRNO_MAX: Final = 4095
_SYSCALL_INSTRUCTION: Final = b"\x0f\x05"
_SYS_MMAP, _SYS_MUNMAP = 9, 11
_PROT_READ_WRITE, _MAP_PRIVATE_ANONYMOUS = 0x3, 0x22


class Tracee:
    """One process with all its threads stopped; made by seize()."""

    def __init__(self, pid: Pid, threads: Iterable[TracedThread]) -> None:
        self.pid = pid
        self._threads = {thread.tid: thread for thread in threads}
        self._memory = os.open(f"/proc/{pid}/mem", os.O_RDWR | os.O_CLOEXEC)
        self._syscall_address: int | None = None

    @property
    def threads(self) -> tuple[Pid, ...]:
        """The ids of all its living threads."""
        return tuple(self._threads)

    def call(self, number: int, *arguments: int, thread: Pid | None = None) -> int:
        """Run one system call in the task, by its leader or the named thread, and give its result.

        Raises:
            OSError: the call failed, with its errno; ESRCH when the thread has died, ETIMEDOUT when the call did
                not return within CALL_TIMEOUT_S.
        """
        if thread is None:
            thread = self.pid if self.pid in self._threads else next(iter(self._threads))
        result = self._threads[thread].call(self._find_syscall(), number, arguments)
        if result > MINUS_ONE - _ERRNO_MAX:
            error = MINUS_ONE + 1 - result
            raise OSError(error, os.strerror(error))
        return result

    def read(self, address: int, size: int) -> bytes:
        """Bytes of its memory; fewer only where a mapping ends. Raises OSError."""
        return os.pread(self._memory, size, address)

    def write(self, address: int, content: bytes) -> None:
        """Change its memory, read-only text too (of which it then has a private copy). Raises OSError."""
        if os.pwrite(self._memory, content, address) != len(content):
            raise OSError(errno.EFAULT, os.strerror(errno.EFAULT))

    def instruction_pointers(self) -> tuple[int, ...]:
        """Where each thread goes on when it is let go; in the order of `threads`."""
        return tuple(thread.instruction_pointer for thread in self._threads.values())

    @contextmanager
    def scratch(self, size: int) -> Iterator[int]:
        """The address of so many writable zero bytes in the task, which are unmapped at the end. Raises OSError."""
        address = self.call(_SYS_MMAP, 0, size, _PROT_READ_WRITE, _MAP_PRIVATE_ANONYMOUS, MINUS_ONE, 0)
        try:
            yield address
        finally:
            self.call(_SYS_MUNMAP, address, size)

    @contextmanager
    def unfiltered(self) -> Iterator[None]:
        """Within, its seccomp filters do not see what its threads call. Raises OSError."""
        for thread in self._threads.values():
            thread.set_options(OPTIONS | O_SUSPEND_SECCOMP)
        try:
            yield
        finally:
            for thread in self._threads.values():
                thread.set_options(OPTIONS)

    def seccomp_filters(self) -> tuple[bytes, ...]:
        """Its seccomp filters as struct sock_filter[], the newest first; of its first thread. Raises OSError."""
        return next(iter(self._threads.values())).seccomp_filters()

    def waiting_signals(self) -> Iterator[bytes]:
        """The siginfo_t of every signal that waits for the process or for one of its threads. Raises OSError."""
        for place, thread in enumerate(self._threads):
            if place == 0:
                yield from waiting_signals(thread, shared=True)
            yield from waiting_signals(thread, shared=False)

    def detach(self) -> None:
        """Let all threads run on where they were; what has died meanwhile is no error, nor is a second call."""
        # The leader last: its death cannot be taken note of before that of the others.
        for thread in reversed(self._threads.values()):
            thread.detach()
        self._threads.clear()
        if self._memory >= 0:
            os.close(self._memory)
            self._memory = -1

    def _find_syscall(self) -> int:
        if self._syscall_address is None:
            self._syscall_address = _syscall_instruction(self.pid, self.read)
        return self._syscall_address


def seize(pids: Iterable[Pid], thaw: Callable[[], None]) -> list[Tracee]:
    """Stop every thread of these processes under ptrace.

    Args:
        pids: The processes; frozen or running.
        thaw: Called when all are bound to stop, before they are waited for: lets frozen ones come to their stop.

    Raises:
        OsRefused: one cannot be traced, has ended, or did not stop within STOP_TIMEOUT_S. All are let go again.
    """
    if not supported():
        raise refused("trace", "processes", f"the registers of {platform.machine()} are not known")
    threads: dict[Pid, list[TracedThread]] = {pid: [] for pid in pids}
    tracees: list[Tracee] = []
    try:
        _seize_new(threads)
        thaw()
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while True:
            for pid, found in threads.items():
                threads[pid] = [thread for thread in found if thread.await_stop(deadline)]
            # A thread that ran until now may have started another one.
            if not _seize_new(threads):
                break
        tracees.extend(_tracee(pid, found) for pid, found in threads.items())
    except BaseException as error:
        for tracee in tracees:
            tracee.detach()
        for found in threads.values():
            for thread in found:
                thread.detach()
        if isinstance(error, OSError):
            raise refused("trace", "the processes", os.strerror(error.errno or 0)) from error
        raise
    return tracees


def _tracee(pid: Pid, threads: list[TracedThread]) -> Tracee:
    if not threads:
        raise refused("trace", f"process {pid}", os.strerror(errno.ESRCH))
    return Tracee(pid, threads)


def _seize_new(threads: dict[Pid, list[TracedThread]]) -> int:
    count = 0
    for pid, known in threads.items():
        try:
            listed = sorted(map(int, os.listdir(f"/proc/{pid}/task")), key=lambda tid: (tid != pid, tid))
        except OSError as error:
            raise refused("trace", f"process {pid}", os.strerror(errno.ESRCH)) from error
        for tid in set(listed) - {thread.tid for thread in known}:
            stat = thread_stat_of(tid)
            if stat is None or stat.ended:
                continue
            known.append(TracedThread.seize(Pid(tid), pid))
            count += 1
        known.sort(key=lambda thread: (thread.tid != pid, thread.tid))
    return count


def _syscall_instruction(pid: Pid, read: Callable[[int, int], bytes]) -> int:
    """Where a `syscall` instruction is mapped executable, the vdso's if there is one. Raises OSError."""
    candidates: list[tuple[int, int]] = []
    with open(f"/proc/{pid}/maps", encoding="utf-8", errors="replace") as stream:
        for line in stream:
            fields = line.split(maxsplit=5)
            if "x" in fields[1]:
                first, _, last = fields[0].partition("-")
                span = (int(first, 16), int(last, 16))
                name = fields[5].strip() if len(fields) > 5 else ""
                if name == "[vdso]":
                    candidates.insert(0, span)
                elif name != "[vsyscall]":
                    candidates.append(span)
    if not candidates:
        raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
    for start, end in candidates:
        with suppress(OSError):
            found = read(start, end - start).find(_SYSCALL_INSTRUCTION)
            if found >= 0:
                return start + found
    raise OSError(errno.ENOEXEC, "no mapping has a syscall instruction")
