"""Core files: their headers say where everything lies, however many parts there are."""

from __future__ import annotations

import struct

import pytest

from ckpt.host.elf_core import NT_AUXV, Segment, lay_out, note
from ckpt.units import PAGE_BYTES

PAGE = PAGE_BYTES
PROGRAM_HEADER = struct.Struct("<IIQQQQQQ")


def segment(page: int, pages: int = 1, permissions: str = "rw-p", *, has_bytes: bool = True) -> Segment:
    return Segment(start=page * PAGE, end=(page + pages) * PAGE, permissions=permissions, has_bytes=has_bytes)


def headers_of(head: bytes) -> list[tuple[int, ...]]:
    (at,) = struct.unpack_from("<Q", head, 32)
    (count,) = struct.unpack_from("<H", head, 56)
    if count == 0xFFFF:
        (sections,) = struct.unpack_from("<Q", head, 40)
        (count,) = struct.unpack_from("<I", head, sections + 44)
    return [PROGRAM_HEADER.unpack_from(head, at + number * PROGRAM_HEADER.size) for number in range(count)]


def test_headers_say_where_notes_and_memory_lie() -> None:
    notes = note("CORE", NT_AUXV, b"12345")
    assert len(notes) % 4 == 0
    segments = [segment(16, 2, "r-xp"), segment(18, has_bytes=False), segment(30, 3)]
    layout = lay_out(notes, segments)
    first, *loads = headers_of(layout.head)
    assert first[0] == 4
    assert layout.head[first[2] : first[2] + first[5]] == notes
    assert [(load[1], load[3], load[5], load[6]) for load in loads] == [
        (5, 16 * PAGE, 2 * PAGE, 2 * PAGE),
        (6, 18 * PAGE, 0, PAGE),
        (6, 30 * PAGE, 3 * PAGE, 3 * PAGE),
    ]
    assert [load[2] for load in loads] == list(layout.offsets)
    assert len(layout.head) == layout.offsets[0]
    assert layout.size_bytes == layout.offsets[-1] + 3 * PAGE


@pytest.mark.parametrize("count", [0xFFFD, 0xFFFE, 0xFFFF, 0x18000])
def test_more_parts_than_the_header_can_count_are_counted_elsewhere(count: int) -> None:
    layout = lay_out(b"", [segment(2 * number) for number in range(count)])
    headers = headers_of(layout.head)
    assert len(headers) == count + 1
    assert headers[-1][3] == 2 * (count - 1) * PAGE
