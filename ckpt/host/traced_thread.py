"""One thread under ptrace; ptrace.py has the rules.

Source: ptrace(2), signal(7) ("Interruption of system calls"), rseq(2), proc_pid_stat(5).
"""

from __future__ import annotations

import errno
import os
import signal
import struct
import time
from contextlib import suppress
from typing import Final

from ckpt.errors import OsRefused
from ckpt.host.process_table import stat_of
from ckpt.host.ptrace_requests import (
    ARGUMENTS,
    CONT,
    DETACH,
    EVENT_STOP,
    GET_RSEQ_CONFIGURATION,
    GETSIGMASK,
    INTERRUPT,
    O_EXITKILL,
    O_TRACESYSGOOD,
    ORIG_RAX,
    RAX,
    RIP,
    SECCOMP_GET_FILTER,
    SEIZE,
    SETOPTIONS,
    SETSIGMASK,
    SYSCALL,
    get_registers,
    request,
    request_bytes,
    set_registers,
)
from ckpt.units import Pid

STOP_TIMEOUT_S: Final = 10.0
CALL_TIMEOUT_S: Final = 10.0
OPTIONS: Final = O_TRACESYSGOOD | O_EXITKILL
MINUS_ONE: Final = (1 << 64) - 1

_SYSCALL_STOP: Final = signal.SIGTRAP | 0x80
_WALL: Final = 0x40000000
_MASK_BYTES: Final = 8
_RSEQ_CONFIGURATION: Final = struct.Struct("<QIIII")
_RSEQ_CS_OFFSET: Final = 8
_FILTERS_MAX: Final = 4096
_FILTER_INSTRUCTION_BYTES: Final = 8
_DEATH_TIMEOUT_S: Final = 2.0
_SPINS: Final = 200
_POLL_S: Final = 0.0002


class TracedThread:
    """One thread under our ptrace. It is stopped, except within call() and before await_stop()."""

    def __init__(self, tid: Pid, pid: Pid) -> None:
        self.tid = tid
        self._pid = pid
        self._gone = False
        self._stopped = False
        self._used = False
        self._registers: tuple[int, ...] = ()
        self._mask = b""
        self._rseq_address = 0
        self._rseq_cs = b""

    @classmethod
    def seize(cls, tid: Pid, pid: Pid) -> TracedThread:
        """Begin to trace it and ask it to stop. Raises OsRefused."""
        try:
            request(SEIZE, tid, 0, OPTIONS)
            request(INTERRUPT, tid)
        except OSError as error:
            reason = error.strerror or ""
            if tracer := _tracer(tid):
                reason += f" (process {tracer} traces it)"
            raise refused("trace", f"thread {tid} of process {pid}", reason) from error
        return cls(tid, pid)

    @property
    def instruction_pointer(self) -> int:
        """Where it goes on."""
        return self._registers[RIP]

    def await_stop(self, deadline: float) -> bool:
        """Wait until it has stopped, once; False if it has died. Raises OsRefused."""
        if self._stopped:
            return True
        try:
            self._await(EVENT_STOP, CONT, deadline)
            self._registers = get_registers(self.tid)
        except TimeoutError as error:
            raise refused(
                "stop", f"thread {self.tid} of process {self._pid}", "it did not stop in time"
            ) from error
        except ProcessLookupError:
            return False
        except ValueError as error:
            raise refused("trace", f"process {self._pid}", str(error)) from error
        self._stopped = True
        return True

    def call(self, instruction: int, number: int, arguments: tuple[int, ...]) -> int:
        """The bare result of a system call. Raises OSError."""
        self._prepare()
        registers = list(self._registers)
        registers[RAX] = number
        registers[RIP] = instruction
        # Else the kernel would take our registers for those of the interrupted call, and restart that one.
        registers[ORIG_RAX] = MINUS_ONE
        for place, value in zip(ARGUMENTS, arguments, strict=False):
            registers[place] = value & MINUS_ONE
        set_registers(self.tid, registers)
        deadline = time.monotonic() + CALL_TIMEOUT_S
        for _ in ("entry", "exit"):
            request(SYSCALL, self.tid)
            self._await(_SYSCALL_STOP, SYSCALL, deadline)
        return get_registers(self.tid)[RAX]

    def set_options(self, options: int) -> None:
        """Replace the options of its tracing. Raises OSError."""
        request(SETOPTIONS, self.tid, 0, options)

    def seccomp_filters(self) -> tuple[bytes, ...]:
        """Its filters, the newest first. Raises OSError."""
        found: list[bytes] = []
        while len(found) < _FILTERS_MAX:
            try:
                count = request(SECCOMP_GET_FILTER, self.tid, len(found), 0)
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.EINVAL):  # no more, or none at all
                    break
                raise
            size = count * _FILTER_INSTRUCTION_BYTES
            found.append(request_bytes(SECCOMP_GET_FILTER, self.tid, bytes(size), len(found)))
        return tuple(found)

    def detach(self) -> None:
        """Put back what it was doing and let it go."""
        if self._gone:
            return
        try:
            if self._used or not self._stopped:
                self._settle()
            if self._used:
                set_registers(self.tid, self._registers)
                request_bytes(SETSIGMASK, self.tid, self._mask)
                self._put_back_rseq()
            request(DETACH, self.tid)
        except ProcessLookupError:  # somebody has killed it
            self._bury()
        except TimeoutError:
            pass
        self._gone = True

    def _bury(self) -> None:
        """Take note of its death: until then its parent, and the threads' leader, hear nothing of it."""
        deadline = time.monotonic() + _DEATH_TIMEOUT_S
        while time.monotonic() < deadline:
            stat = stat_of(self.tid)
            # Our own child's death is for whoever started it.
            if stat is None or (self.tid == self._pid and stat.parent == os.getpid()):
                return
            try:
                if os.waitpid(self.tid, _WALL | os.WNOHANG)[0]:
                    return
            except ChildProcessError:
                return
            time.sleep(_POLL_S)

    def _prepare(self) -> None:
        """Keep signals away, so that none is delivered in the middle; remember what this changes."""
        if self._used:
            return
        self._used = True
        self._mask = request_bytes(GETSIGMASK, self.tid, bytes(_MASK_BYTES))
        request_bytes(SETSIGMASK, self.tid, b"\xff" * _MASK_BYTES)
        # A kernel without this request has no restartable sequences, or they cannot be found: then none is lost
        # that was not at risk under any debugger.
        with suppress(OSError):
            configuration = request_bytes(GET_RSEQ_CONFIGURATION, self.tid, bytes(_RSEQ_CONFIGURATION.size))
            self._rseq_address = _RSEQ_CONFIGURATION.unpack(configuration)[0]
        if self._rseq_address:
            with suppress(OSError), open(f"/proc/{self.tid}/mem", "rb", buffering=0) as memory:
                self._rseq_cs = os.pread(memory.fileno(), 8, self._rseq_address + _RSEQ_CS_OFFSET)

    def _settle(self) -> None:
        """Come to a stop before the kernel looks whether a system call must be restarted."""
        with suppress(OSError):  # EIO: it is not seized; ESRCH: it is not stopped, or gone
            request(INTERRUPT, self.tid)
        with suppress(OSError):
            request(CONT, self.tid)
        self._await(EVENT_STOP, CONT, time.monotonic() + STOP_TIMEOUT_S)

    def _put_back_rseq(self) -> None:
        """The kernel forgot the sequence when it saw our instruction pointer outside of it."""
        if not self._rseq_cs.strip(b"\0"):
            return
        with suppress(OSError), open(f"/proc/{self.tid}/mem", "rb+", buffering=0) as memory:
            os.pwrite(memory.fileno(), self._rseq_cs, self._rseq_address + _RSEQ_CS_OFFSET)

    def _await(self, wanted: int, resume: int, deadline: float) -> None:
        """Wait for one kind of stop; others are resumed, signals delivered.

        Raises:
            ProcessLookupError: it died.
            TimeoutError: it did not come.
        """
        spins = 0
        while True:
            try:
                tid, status = os.waitpid(self.tid, _WALL | os.WNOHANG)
            except ChildProcessError:
                self._gone = True
                raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH)) from None
            if tid == 0:
                if time.monotonic() > deadline:
                    raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
                spins += 1
                if spins < _SPINS:
                    os.sched_yield()
                else:
                    time.sleep(_POLL_S)
                continue
            if not os.WIFSTOPPED(status):
                self._gone = True
                raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
            event, number = status >> 16, os.WSTOPSIG(status)
            if wanted in (event, number):
                return
            request(resume, self.tid, 0, 0 if event or number == _SYSCALL_STOP else number)


def _tracer(tid: int) -> int:
    with suppress(OSError), open(f"/proc/{tid}/status", encoding="utf-8", errors="replace") as stream:
        for line in stream:
            if line.startswith("TracerPid:"):
                return int(line.split()[1])
    return 0


def refused(operation: str, subject: str, reason: str) -> OsRefused:
    """The error of tracing that failed."""
    return OsRefused(operation=operation, subject=subject, reason=reason)
