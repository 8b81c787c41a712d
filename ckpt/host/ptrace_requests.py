"""ptrace(2) itself: its requests and the registers of x86-64, for ptrace.py and traced_thread.py.

Rule: each function raises OSError with the errno.
Source: ptrace(2); include/uapi/linux/ptrace.h; struct user_regs_struct of <sys/user.h>.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from collections.abc import Iterable, Iterator
from typing import Final

CONT, DETACH, SYSCALL = 7, 17, 24
SETOPTIONS, GETREGSET, SETREGSET, SEIZE, INTERRUPT = 0x4200, 0x4204, 0x4205, 0x4206, 0x4207
PEEKSIGINFO, GETSIGMASK, SETSIGMASK, SECCOMP_GET_FILTER, GET_RSEQ_CONFIGURATION = (
    0x4209,
    0x420A,
    0x420B,
    0x420C,
    0x420F,
)
O_TRACESYSGOOD, O_EXITKILL, O_SUSPEND_SECCOMP = 0x1, 0x100000, 0x200000
EVENT_STOP: Final = 128

# Places in struct user_regs_struct, which has 27 numbers of 64 bits.
RAX, ORIG_RAX, RIP = 10, 15, 16
ARGUMENTS: Final = (14, 13, 12, 7, 9, 8)
"""rdi, rsi, rdx, r10, r8, r9: where a system call has its arguments."""

_REGISTERS: Final = struct.Struct("<27Q")
_NT_PRSTATUS: Final = 1
_PEEK: Final = struct.Struct("<QIi")
_PEEK_SHARED: Final = 1
_SIGINFO_BYTES: Final = 128
_PEEKED: Final = 32

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
_libc.ptrace.restype = ctypes.c_long


class _Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("size", ctypes.c_size_t))


def supported() -> bool:
    """Whether this machine's registers are known here."""
    return platform.machine() == "x86_64"


def request(number: int, tid: int, address: int = 0, data: int = 0) -> int:
    """One ptrace request."""
    result: int = _libc.ptrace(number, tid, address, data)
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return result


def request_bytes(number: int, tid: int, content: bytes, address: int | None = None) -> bytes:
    """A request whose data is memory; what the memory holds afterwards. `address` is its size by default."""
    buffer = ctypes.create_string_buffer(content, len(content))
    request(number, tid, len(content) if address is None else address, ctypes.addressof(buffer))
    return buffer.raw


def waiting_signals(tid: int, *, shared: bool) -> Iterator[bytes]:
    """The siginfo_t of every signal that waits for a thread itself, or for its process."""
    found = 0
    while True:
        buffer = ctypes.create_string_buffer(_PEEKED * _SIGINFO_BYTES)
        arguments = ctypes.create_string_buffer(_PEEK.pack(found, _PEEK_SHARED * shared, _PEEKED), _PEEK.size)
        count = request(PEEKSIGINFO, tid, ctypes.addressof(arguments), ctypes.addressof(buffer))
        for place in range(count):
            yield buffer.raw[place * _SIGINFO_BYTES :][:_SIGINFO_BYTES]
        found += count
        if not count:
            return


def get_registers(tid: int) -> tuple[int, ...]:
    """All registers of a thread. Raises ValueError for a 32-bit program."""
    buffer = ctypes.create_string_buffer(_REGISTERS.size)
    vector = _Iovec(ctypes.addressof(buffer), _REGISTERS.size)
    request(GETREGSET, tid, _NT_PRSTATUS, ctypes.addressof(vector))
    if vector.size != _REGISTERS.size:
        raise ValueError("it is a 32-bit program")
    return _REGISTERS.unpack(buffer.raw)


def set_registers(tid: int, registers: Iterable[int]) -> None:
    """Replace all registers of a thread."""
    buffer = ctypes.create_string_buffer(_REGISTERS.pack(*registers), _REGISTERS.size)
    vector = _Iovec(ctypes.addressof(buffer), _REGISTERS.size)
    request(SETREGSET, tid, _NT_PRSTATUS, ctypes.addressof(vector))
