"""Indexes as bytes: exactly these, and what is refused."""

from __future__ import annotations

import struct

import pytest

from ckpt.codec.frame import HEADER_BYTES
from ckpt.codec.hooks import decode_index, encode_index, is_hook, layout_of, read_marks
from ckpt.errors import ObjectCorrupt
from ckpt.units import Digest

PACKS = (Digest("ab" * 32), Digest("cd" * 32))
INDEX = encode_index({7: 1, 3: 0, (1 << 64) - 1: 1}, PACKS)


def test_an_index_has_exactly_these_bytes() -> None:
    assert (
        struct.pack(">II", 2, 3)
        + b"\xab" * 32
        + b"\xcd" * 32
        + struct.pack(">QQQ", 3, 7, (1 << 64) - 1)
        + struct.pack(">III", 0, 1, 1)
    ) == INDEX


def test_it_says_where_its_parts_begin() -> None:
    packs, marks, first_mark, first_place = layout_of(INDEX[:8], len(INDEX), "x")
    assert (packs, marks) == (2, 3)
    plain_at = first_mark - HEADER_BYTES
    assert list(read_marks(INDEX[plain_at : first_place - HEADER_BYTES])) == [3, 7, (1 << 64) - 1]
    assert first_place - first_mark == 24


def test_one_digest_of_64_is_a_hook() -> None:
    assert sum(is_hook(bytes([first, 1, 2])) for first in range(256)) == 4
    assert is_hook(bytes(32))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it has 0"),
        (INDEX[:7], "it has 7"),
        (INDEX[:-1], f"it has {len(INDEX) - 1}"),
        (INDEX + b"x", f"it has {len(INDEX) + 1}"),
        (b"\xff" * 8 + INDEX[8:], "4294967295 marks of 4294967295 packs"),
        (bytes(8), "0 marks of 0 packs"),
        (INDEX[:-1] + b"\2", "pack 2 of 2"),
        (INDEX[:-4] + b"\xff" * 4, "pack 4294967295 of 2"),
    ],
)
def test_an_index_that_cannot_be_is_refused(content: bytes, reason: str) -> None:
    with pytest.raises(ObjectCorrupt, match=reason) as caught:
        decode_index(content, "ab")
    assert "index ab" in caught.value.message
