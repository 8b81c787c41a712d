"""An index: of every 64th chunk of some packs, in which pack it is.

    INDEX = PACKS u32, ENTRIES u32, NAME*, MARK*, PLACE*       (numbers are big-endian)

Rules: F94 to F97 of images/FORMAT.md. A mark is the first 8 bytes of a digest; marks are sorted, so that one is
found by reading a few bytes of the index. An index is a hint: what it says is looked up in the pack's own list.
"""

from __future__ import annotations

import struct
import sys
from array import array
from typing import Final

from ckpt.codec.frame import HEADER_BYTES, Kind
from ckpt.errors import ObjectCorrupt
from ckpt.units import Digest

HEAD: Final = struct.Struct(">II")
NAME_BYTES: Final = 32
MARK_BYTES: Final = 8
PLACE_BYTES: Final = 4

SAMPLE_MASK: Final = 0x3F
"""A chunk is a hook if these bits of its digest's first byte are 0: one of 64."""


def is_hook(digest: bytes) -> bool:
    """Whether indexes name the chunk with this digest."""
    return not digest[0] & SAMPLE_MASK


def encode_index(entries: dict[int, int], packs: tuple[Digest, ...]) -> bytes:
    """The index of these marks, as numbers, each with the place of its pack in `packs`."""
    marks = array("Q", sorted(entries))
    return encode_sorted(marks, array("I", (entries[mark] for mark in marks)), packs)


def encode_sorted(marks: array[int], places: array[int], packs: tuple[Digest, ...]) -> bytes:
    """The same of marks that are sorted already, and the place of each one's pack; both are used up."""
    return b"".join(
        (
            HEAD.pack(len(packs), len(marks)),
            *(bytes.fromhex(name) for name in packs),
            _big(marks).tobytes(),
            _big(places).tobytes(),
        )
    )


def layout_of(head: bytes, plain_bytes: int, name: str) -> tuple[int, int, int, int]:
    """Counts of packs and marks, and where in the object the marks and the places begin.

    Raises:
        ObjectCorrupt: the counts do not fit the size.
    """
    packs, marks = HEAD.unpack(head[: HEAD.size]) if len(head) >= HEAD.size else (0, 0)
    expected = HEAD.size + packs * NAME_BYTES + marks * (MARK_BYTES + PLACE_BYTES)
    if expected != plain_bytes or not packs:
        raise ObjectCorrupt(
            kind=str(Kind.INDEX),
            name=name,
            reason=f"{marks} marks of {packs} packs take {expected} bytes, and it has {plain_bytes}",
        )
    first_mark = HEADER_BYTES + HEAD.size + packs * NAME_BYTES
    return packs, marks, first_mark, first_mark + marks * MARK_BYTES


def decode_index(plain: bytes, name: str) -> tuple[array[int], array[int], tuple[Digest, ...]]:
    """The marks, sorted, the place of each one's pack, and the packs.

    Raises:
        ObjectCorrupt: not what the format says.
    """
    packs, marks, first_mark, first_place = layout_of(plain[: HEAD.size], len(plain), name)
    first_mark, first_place = first_mark - HEADER_BYTES, first_place - HEADER_BYTES
    names = tuple(
        Digest(plain[at : at + NAME_BYTES].hex()) for at in range(HEAD.size, first_mark, NAME_BYTES)
    )
    found, places = read_marks(plain[first_mark:first_place]), array("I")
    places.frombytes(plain[first_place:])
    _big(places)
    if marks and max(places) >= packs:
        raise ObjectCorrupt(kind=str(Kind.INDEX), name=name, reason=f"pack {max(places)} of {packs}")
    return found, places, names


def read_marks(raw: bytes) -> array[int]:
    """Marks as numbers."""
    marks = array("Q")
    marks.frombytes(raw)
    return _big(marks)


def _big(values: array[int]) -> array[int]:
    if sys.byteorder == "little":
        values.byteswap()
    return values
