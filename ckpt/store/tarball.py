"""The headers of POSIX tar archives, to the byte: the same member always has the same header.

Rule: a reader makes the header that must be there and compares; nothing of an archive is interpreted but one
number, and that is bounded by the caller.
Source: POSIX.1-2001, pax(1), "ustar Interchange Format" and "pax Extended Header".
"""

from __future__ import annotations

import os
import struct
from typing import Final

BLOCK_BYTES: Final = 512

END: Final = bytes(2 * BLOCK_BYTES)
"""What follows the last member."""

_USTAR: Final = struct.Struct("100s 8s 8s 8s 12s 12s 8s c 100s 6s 2s 32s 32s 8s 8s 155s 12x")
_SIZE: Final = slice(124, 136)
_MTIME: Final = slice(136, 148)
_CHECKSUM: Final = slice(148, 156)
_KIND: Final = slice(156, 157)
_OCTAL_MAX: Final = 8**11 - 1
_NAME_BYTES_MAX: Final = 100
_FILE: Final = b"0"
_DIRECTORY: Final = b"5"
_EXTENDED: Final = b"x"
_EXTENDED_NAME: Final = b"PaxHeaders/ckpt"
_MODES: Final = {_FILE: 0o600, _DIRECTORY: 0o700, _EXTENDED: 0o600}


def header(name: str, size_bytes: int, mtime_s: int, *, directory: bool = False) -> bytes:
    """What stands before a member: one block, or three where its name or size needs an extended header.

    The member is root's, and readable for root alone.
    """
    encoded = os.fsencode(name)
    mtime = min(max(mtime_s, 0), _OCTAL_MAX)
    extended = b""
    if len(encoded) > _NAME_BYTES_MAX:
        extended += _record(b"path", encoded)
    if size_bytes > _OCTAL_MAX:
        extended += _record(b"size", str(size_bytes).encode())
    block = _ustar(
        encoded[:_NAME_BYTES_MAX],
        min(size_bytes, _OCTAL_MAX),
        mtime,
        _DIRECTORY if directory else _FILE,
    )
    if not extended:
        return block
    before = _ustar(_EXTENDED_NAME, len(extended), mtime, _EXTENDED)
    return before + extended + padding(len(extended)) + block


def padding(size_bytes: int) -> bytes:
    """The zeros that fill a member of this size up to whole blocks."""
    return bytes(-size_bytes % BLOCK_BYTES)


def size_in(block: bytes) -> int | None:
    """The size that the header in this block says; None if it says none."""
    return _number(block[_SIZE])


def mtime_in(block: bytes) -> int | None:
    """The instant that the header in this block says, in seconds since 1970; None if it says none."""
    return _number(block[_MTIME])


def is_extended(block: bytes) -> bool:
    """Whether this is the first of the three blocks of an extended header, of those that header() makes."""
    return block[_KIND] == _EXTENDED and block.startswith(_EXTENDED_NAME + b"\0")


def _number(field: bytes) -> int | None:
    digits = field.rstrip(b"\0 ")
    return int(digits, 8) if digits and set(digits) <= set(b"01234567") else None


def _ustar(name: bytes, size: int, mtime: int, kind: bytes) -> bytes:
    block = bytearray(
        _USTAR.pack(
            name,
            b"%07o" % _MODES[kind],
            b"%07o" % 0,
            b"%07o" % 0,
            b"%011o" % size,
            b"%011o" % mtime,
            b" " * 8,
            kind,
            b"",
            b"ustar",
            b"00",
            b"root",
            b"root",
            b"%07o" % 0,
            b"%07o" % 0,
            b"",
        )
    )
    block[_CHECKSUM] = b"%06o\0 " % sum(block)
    return bytes(block)


def _record(keyword: bytes, value: bytes) -> bytes:
    """A record of an extended header; it begins with its length, which counts its own digits."""
    rest = len(keyword) + len(value) + 3
    length = rest + len(str(rest))
    length = rest + len(str(length))
    return b"%d %s=%s\n" % (length, keyword, value)
