"""Numbers in columns: each as the difference that is mostly small, its bytes sorted by their weight.

Rules: F90 of images/FORMAT.md. Small numbers leave planes of zeros, of which zstd makes nothing.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable, Iterator
from itertools import accumulate, chain
from operator import add
from typing import Final

_WIDTHS: Final = {"I": 4, "Q": 8}


def write_column(values: Iterable[int], code: str) -> bytes:
    """The values, none below zero, as planes of bytes: all lowest bytes first.

    Args:
        values: What to write.
        code: "I" for 32 bits, "Q" for 64.
    """
    raw = _little(array(code, values)).tobytes()
    return b"".join(raw[plane :: _WIDTHS[code]] for plane in range(_WIDTHS[code]))


def read_column(content: bytes, count: int, code: str) -> array[int]:
    """The `count` values that these bytes, exactly as many as they need, stand for."""
    width = _WIDTHS[code]
    raw = bytearray(count * width)
    for plane in range(width):
        raw[plane::width] = content[plane * count : (plane + 1) * count]
    found = array(code)
    found.frombytes(raw)
    return _little(found)


def column_bytes(count: int, code: str) -> int:
    """How many bytes `count` values take."""
    return count * _WIDTHS[code]


def zigzag(differences: Iterable[int]) -> Iterator[int]:
    """Numbers of any sign as numbers without: 0, -1, 1, -2 become 0, 1, 2, 3."""
    return (value << 1 if value >= 0 else (-value << 1) - 1 for value in differences)


def unzigzag(values: Iterable[int]) -> Iterator[int]:
    """What zigzag() was given."""
    return (-((value + 1) >> 1) if value & 1 else value >> 1 for value in values)


def steps_between(starts: Iterable[int], lengths: Iterable[int]) -> Iterator[int]:
    """How far each of several runs begins behind the end of the run before; the first, behind 0."""
    end = 0
    for start, length in zip(starts, lengths, strict=True):
        yield start - end
        end = start + length


def positions(steps: Iterable[int], lengths: Iterable[int]) -> Iterator[int]:
    """What steps_between() was given: where each run begins.

    Nothing is built: a column that a few bytes were blown up to costs no more than itself.
    """
    return accumulate(map(add, steps, chain((0,), lengths)))


def _little(values: array[int]) -> array[int]:
    if sys.byteorder == "big":
        values.byteswap()
    return values
