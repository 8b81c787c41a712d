"""How a thread that was interrupted in a system call makes it again, with the time that remained.

A freeze lets a timed wait end with -EINTR where CRIU is at work: the kernel keeps the wait's end where CRIU cannot
read it (ERESTART_RESTARTBLOCK), and epoll_wait(2) and a few others give -EINTR at any freeze. No handler has run then,
so a program that lives without signals may take it for an error: tail -F ends of it.

Rules:
- Only where the time that remained is known and has a place that is ours to write: a register, or the memory that
  the kernel itself wrote the remainder to. What the caller keeps for itself is never changed.
- x86-64 in 64-bit mode only. Registers that carry arguments are changed; the C calling convention gives them up.
Source: signal(7), "Interruption of system calls"; restart_syscall(2); do_nanosleep(), do_sys_poll(), futex_wait() and
poll_select_finish() of the kernel.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from ckpt.model.clocks import ClockAdvance, PendingWait
from ckpt.units import MILLISECOND, SECOND, Nanoseconds

_EINTR: Final = -4 & 0xFFFF_FFFF_FFFF_FFFF

_POLL: Final = 7
_SELECT: Final = 23
_NANOSLEEP: Final = 35
_SEMOP: Final = 65
_RT_SIGTIMEDWAIT: Final = 128
_FUTEX: Final = 202
_RESTART_SYSCALL: Final = 219
_SEMTIMEDOP: Final = 220
_CLOCK_NANOSLEEP: Final = 230
_EPOLL_WAIT: Final = 232
_PSELECT6: Final = 270
_PPOLL: Final = 271
_EPOLL_PWAIT: Final = 281
_EPOLL_PWAIT2: Final = 441
_NUMBERS: Final = {
    "poll": _POLL,
    "nanosleep": _NANOSLEEP,
    "futex": _FUTEX,
    "clock_nanosleep": _CLOCK_NANOSLEEP,
}
_REWRITTEN: Final = {_SELECT: "r8", _PSELECT6: "r8", _PPOLL: "dx"}
"""The register with the address of a timeout that the kernel has replaced by what remained."""

_MILLISECONDS: Final = {_POLL: "dx", _EPOLL_WAIT: "r10", _EPOLL_PWAIT: "r10"}
"""The register with a timeout in milliseconds."""

_ENDLESS: Final = {_SEMOP: "", _SEMTIMEDOP: "r10", _RT_SIGTIMEDWAIT: "dx", _EPOLL_PWAIT2: "r10"}
"""The register with the address of a timeout that is the caller's own memory: none is waited for without end."""

_SLEEPS: Final = frozenset((_NANOSLEEP, _CLOCK_NANOSLEEP, _RESTART_SYSCALL))
_FUTEX_COMMAND: Final = 0x7F
_FUTEX_WAIT_BITSET: Final = 9
_ABSTIME: Final = 1
_POLL_MS_MAX: Final = 2**31 - 1
_SHORT_MS: Final = 50
"""A timeout of a register that is not longer is simply begun again where nothing is known."""

_TIMESPEC: Final = struct.Struct("=qq")
_MONOTONIC: Final = "CLOCK_MONOTONIC"
_BOOTTIME: Final = "CLOCK_BOOTTIME"
_CLOCK_NAMES: Final = {0: _MONOTONIC, 1: _MONOTONIC, 7: _BOOTTIME}
"""A relative sleep on CLOCK_REALTIME is measured by CLOCK_MONOTONIC; the clock of a CPU is nobody's here."""


class Registers(Protocol):
    """The registers of a thread, each as a number without a sign, as CRIU's images call them."""

    orig_ax: int
    ax: int
    di: int
    si: int
    dx: int
    r10: int
    r8: int


class Memory(Protocol):
    """The memory of a thread."""

    def read(self, address: int, size: int) -> bytes | None:
        """The bytes there; None where they cannot be had."""

    def write(self, address: int, content: bytes) -> object:
        """Replace the bytes there."""


@dataclass(slots=True, kw_only=True)
class InterruptedCall:
    """What a thread was interrupted in. `advance` is what has passed on its clocks since `wait` was true.

    `may_poll` is whether the thread may call poll(2) in place of a sleep.
    """

    registers: Registers
    memory: Memory
    wait: PendingWait | None
    advance: ClockAdvance
    may_poll: bool
    _number: int = field(default=0, init=False)

    def prepare(self) -> int | None:
        """The number of the call that the thread is to make, its arguments set; None where it is to see -EINTR."""
        if self.registers.ax != _EINTR:
            return None
        self._number = self.registers.orig_ax
        if self._number == _RESTART_SYSCALL:
            if self.wait is None or self.wait.call not in _NUMBERS:
                return None
            self._number = _NUMBERS[self.wait.call]
        return self._number if self._can_be_made_again() else None

    def shorten(self) -> None:
        """Take what has passed from the rest of a call that begins again by itself, which the kernel has written."""
        number = self.registers.orig_ax
        if number in _REWRITTEN:
            self._shorten(
                getattr(self.registers, _REWRITTEN[number]), fraction_ns=1000 if number == _SELECT else 1
            )

    def _can_be_made_again(self) -> bool:
        registers = self.registers
        if self._number in _MILLISECONDS:
            return self._in_register(_MILLISECONDS[self._number])
        if self._number == _NANOSLEEP:
            return self._sleep(request="di", rest="si", clock=_MONOTONIC)
        if self._number == _CLOCK_NANOSLEEP and not registers.si & _ABSTIME:
            return self._sleep(request="dx", rest="r10", clock=_CLOCK_NAMES.get(registers.di, ""))
        if self._number == _FUTEX:
            # Its timeout is a time, not a span; that of FUTEX_WAIT is the caller's own memory.
            return registers.si & _FUTEX_COMMAND == _FUTEX_WAIT_BITSET
        return self._number in _ENDLESS and not getattr(registers, _ENDLESS[self._number], 0)

    def _in_register(self, name: str) -> bool:
        """A timeout in milliseconds."""
        timeout_ms = _signed_32(getattr(self.registers, name))
        if timeout_ms < 0:
            return True
        left_ms = self._left_ms()
        if left_ms is not None:
            setattr(self.registers, name, min(timeout_ms, left_ms))
        return left_ms is not None or timeout_ms <= _SHORT_MS

    def _sleep(self, *, request: str, rest: str, clock: str) -> bool:
        """A sleep goes on with what the kernel wrote as its rest, or as a poll(2) of nothing."""
        registers = self.registers
        place = getattr(registers, rest)
        if place:
            setattr(registers, request, place)
            self._shorten(place, fraction_ns=1, clock=clock)
            return True
        left_ms = self._left_ms()
        if left_ms is None or left_ms > _POLL_MS_MAX or not clock or not self.may_poll:
            return False
        self._number = _POLL
        registers.di, registers.si, registers.dx = 0, 0, left_ms
        return True

    def _left_ms(self) -> int | None:
        if self.wait is None or self.wait.left_ns is None:
            return None
        left_ns = self.wait.left_ns - self._passed_ns(self.wait.clock)
        return max(0, -(-left_ns // MILLISECOND))

    def _passed_ns(self, clock: str) -> Nanoseconds:
        return self.advance.boottime_ns if clock == _BOOTTIME else self.advance.monotonic_ns

    def _shorten(self, address: int, *, fraction_ns: int, clock: str = _MONOTONIC) -> None:
        passed_ns = self._passed_ns(clock) if clock else 0
        found = self.memory.read(address, _TIMESPEC.size) if address and passed_ns else None
        if found is None or len(found) != _TIMESPEC.size:
            return
        seconds, fraction = _TIMESPEC.unpack(found)
        if seconds < 0 or not 0 <= fraction * fraction_ns < SECOND:
            return
        whole, rest_ns = divmod(max(0, seconds * SECOND + fraction * fraction_ns - passed_ns), SECOND)
        self.memory.write(address, _TIMESPEC.pack(whole, rest_ns // fraction_ns))


def may_be_interrupted(words: Sequence[int]) -> bool:
    """Whether a call, its number and its six arguments, may give EINTR at a freeze, or keeps a rest that is counted."""
    number, *arguments = words
    if number == _FUTEX:
        # Most of them have no timeout, and begin again by themselves.
        return bool(arguments[3]) and arguments[1] & _FUTEX_COMMAND == _FUTEX_WAIT_BITSET
    return number in _MILLISECONDS or number in _ENDLESS or number in _REWRITTEN or number in _SLEEPS


def _signed_32(register: int) -> int:
    low = register & 0xFFFF_FFFF
    return low - (1 << 32) if low >> 31 else low
