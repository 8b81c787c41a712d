"""The build-id of an ELF file: what CRIU compares of executables and libraries.

Source: elf(5); the note NT_GNU_BUILD_ID.
"""

from __future__ import annotations

import os
import struct
from typing import Final

_PT_NOTE: Final = 4
_NT_GNU_BUILD_ID: Final = 3
_NOTE_BYTES_MAX: Final = 4096
_PROGRAM_HEADERS_MAX: Final = 128
_HEADER_BYTES: Final = 64
_NOTE: Final = struct.Struct("=III")


def build_id(fd: int) -> str | None:
    """The build-id of the open file in hexadecimal; None if it is no 64-bit ELF file, or has none."""
    header = os.pread(fd, _HEADER_BYTES, 0)
    if len(header) < _HEADER_BYTES or header[:5] != b"\x7fELF\x02":
        return None
    (offset,) = struct.unpack_from("=Q", header, 32)
    entry_bytes, entries = struct.unpack_from("=HH", header, 54)
    if entry_bytes < 56 or entries > _PROGRAM_HEADERS_MAX:
        return None
    table = os.pread(fd, entry_bytes * entries, offset)
    for at in range(0, len(table) - entry_bytes + 1, entry_bytes):
        (kind,) = struct.unpack_from("=I", table, at)
        if kind == _PT_NOTE:
            note_at, _, _, note_bytes = struct.unpack_from("=QQQQ", table, at + 8)
            found = _in_notes(os.pread(fd, min(note_bytes, _NOTE_BYTES_MAX), note_at))
            if found:
                return found
    return None


def _in_notes(notes: bytes) -> str:
    at = 0
    while at + _NOTE.size <= len(notes):
        name_bytes, content_bytes, kind = _NOTE.unpack_from(notes, at)
        name_at = at + _NOTE.size
        content_at = name_at + (name_bytes + 3 & ~3)
        if kind == _NT_GNU_BUILD_ID and notes[name_at : name_at + name_bytes] == b"GNU\0":
            return notes[content_at : content_at + content_bytes].hex()
        at = content_at + (content_bytes + 3 & ~3)
    return ""
