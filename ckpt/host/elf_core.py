"""A core file of ELF for x86-64, as the kernel writes one: a header, notes, and the memory, with holes for zeros.

Rule: a segment that has no bytes in the file is one whose bytes are elsewhere (in the program's own files): a
debugger looks there.
Source: elf(5), core(5); uapi/linux/elf.h; include/linux/elfcore.h; fs/binfmt_elf.c (elf_core_dump, PN_XNUM).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from ckpt.units import PAGE_BYTES, ByteCount

NT_PRSTATUS: Final = 1
NT_FPREGSET: Final = 2
NT_PRPSINFO: Final = 3
NT_AUXV: Final = 6
NT_X86_XSTATE: Final = 0x202
NT_FILE: Final = 0x46494C45

_ELF_HEADER: Final = struct.Struct("<16sHHIQQQIHHHHHH")
_PROGRAM_HEADER: Final = struct.Struct("<IIQQQQQQ")
_SECTION_HEADER: Final = struct.Struct("<IIQQQQIIQQ")
_NOTE: Final = struct.Struct("<III")
_IDENTITY: Final = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
_ET_CORE: Final = 4
_EM_X86_64: Final = 62
_PT_LOAD: Final = 1
_PT_NOTE: Final = 4
_PN_XNUM: Final = 0xFFFF
"""The number of segments is in the first section header: it does not fit where it belongs."""

_FLAGS: Final = {"r": 4, "w": 2, "x": 1}


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A part of the memory; `has_bytes` says whether the file has them. `permissions` as in /proc/PID/maps."""

    start: int
    end: int
    permissions: str
    has_bytes: bool

    @property
    def file_bytes(self) -> int:
        """What it takes in the file."""
        return self.end - self.start if self.has_bytes else 0


def note(owner: str, kind: int, content: bytes) -> bytes:
    """One note, padded as ELF wants it."""
    name = owner.encode() + b"\0"
    return _NOTE.pack(len(name), len(content), kind) + _padded(name, 4) + _padded(content, 4)


@dataclass(frozen=True, slots=True, kw_only=True)
class CoreLayout:
    """What stands before the memory, where each segment begins in the file, and the size of the file."""

    head: bytes
    offsets: tuple[int, ...]
    size_bytes: ByteCount


def lay_out(notes: bytes, segments: Sequence[Segment]) -> CoreLayout:
    """Where everything lies in the core file of this memory."""
    count = len(segments) + 1
    is_extended = count >= _PN_XNUM
    notes_at = _ELF_HEADER.size + count * _PROGRAM_HEADER.size
    sections_at = (notes_at + len(notes) + 7) // 8 * 8
    end = sections_at + (_SECTION_HEADER.size if is_extended else 0)
    place = first = (end + PAGE_BYTES - 1) // PAGE_BYTES * PAGE_BYTES
    offsets = []
    headers = [_PROGRAM_HEADER.pack(_PT_NOTE, 4, notes_at, 0, 0, len(notes), 0, 4)]
    for segment in segments:
        flags = sum(flag for letter, flag in _FLAGS.items() if letter in segment.permissions)
        size, filled = segment.end - segment.start, segment.file_bytes
        headers.append(
            _PROGRAM_HEADER.pack(_PT_LOAD, flags, place, segment.start, 0, filled, size, PAGE_BYTES)
        )
        offsets.append(place)
        place += filled
    header = _ELF_HEADER.pack(
        _IDENTITY,
        _ET_CORE,
        _EM_X86_64,
        1,
        0,
        _ELF_HEADER.size,
        sections_at if is_extended else 0,
        0,
        _ELF_HEADER.size,
        _PROGRAM_HEADER.size,
        min(count, _PN_XNUM),
        _SECTION_HEADER.size if is_extended else 0,
        1 if is_extended else 0,
        0,
    )
    head = (header + b"".join(headers) + notes).ljust(sections_at, b"\0")
    if is_extended:
        head += _SECTION_HEADER.pack(0, 0, 0, 0, 0, 1, 0, count, 0, 0)
    return CoreLayout(head=head.ljust(first, b"\0"), offsets=tuple(offsets), size_bytes=ByteCount(place))


def _padded(content: bytes, multiple: int) -> bytes:
    return content + bytes(-len(content) % multiple)
