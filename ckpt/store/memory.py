"""Memory that is used again, and compared where it stands.

The C library gives every freed block of a MiB back to the kernel, which then has to clear pages for the next one:
measured, a quarter of the time that a first ingest takes. While big pieces come and go, it keeps them.
Source: mallopt(3), "M_TRIM_THRESHOLD", "M_MMAP_THRESHOLD"; memcmp(3).
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Final

_TRIM_THRESHOLD: Final = -1
_MMAP_THRESHOLD: Final = -3
_KEPT_BYTES: Final = 64 << 20
_BLOCK_BYTES_MAX: Final = 32 << 20

Buffer = bytes | bytearray


@cache
def keep_freed_memory() -> None:
    """Have the C library keep up to 64 MiB that this process frees; nothing where it knows no such setting."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _BLOCK_BYTES_MAX)
        mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)


def different_parts(one: Buffer, offset: int, other: Buffer, parts: range) -> list[int]:
    """Which parts of `other` are not as what `one` has `offset` further on; nothing is copied.

    Args:
        one: Bytes.
        offset: How much further on they stand in `one`.
        other: Bytes.
        parts: Where parts begin in `other`; they are as long as its step, but end where it stops.
    """
    memcmp = _memcmp()
    step, end = parts.step, parts.stop
    if offset + end > len(one) or end > len(other):
        raise ValueError(parts)
    left, right = _address(one) + offset, _address(other)
    return [at for at in parts if memcmp(left + at, right + at, min(step, end - at))]


@cache
def _memcmp() -> ctypes._NamedFuncPointer:
    # With the interpreter's lock held: to give it away and take it back costs more than comparing 64 KiB.
    memcmp = ctypes.PyDLL(None).memcmp
    memcmp.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
    memcmp.restype = ctypes.c_int
    return memcmp


def _address(buffer: Buffer) -> int:
    """Where a buffer stands, for as long as the caller holds it and does not resize it."""
    if isinstance(buffer, bytes):
        return ctypes.cast(ctypes.c_char_p(buffer), ctypes.c_void_p).value or 0
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))
