"""Numbers in columns: exactly these bytes, and back."""

from __future__ import annotations

from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckpt.codec.columns import column_bytes, positions, read_column, unzigzag, write_column, zigzag


def test_a_column_is_its_lowest_bytes_then_the_next_ones() -> None:
    assert write_column([0x01020304, 5], "I") == b"\x04\x05\x03\x00\x02\x00\x01\x00"
    assert write_column([1], "Q") == b"\x01" + bytes(7)
    assert write_column([], "I") == b""


@pytest.mark.parametrize(("code", "most"), [("I", (1 << 32) - 1), ("Q", (1 << 64) - 1)])
def test_a_column_reads_back_as_it_was(code: str, most: int) -> None:
    values = [0, 1, 255, 256, most]
    raw = write_column(values, code)
    assert len(raw) == column_bytes(len(values), code)
    assert read_column(raw, len(values), code) == array(code, values)


@given(st.lists(st.integers(-(1 << 62), 1 << 62)))
def test_numbers_of_any_sign_come_back(values: list[int]) -> None:
    written = list(zigzag(values))
    assert all(value >= 0 for value in written)
    assert list(unzigzag(written)) == values


def test_small_differences_are_small_numbers() -> None:
    assert list(zigzag([0, -1, 1, -2, 2])) == [0, 1, 2, 3, 4]
    assert list(positions([3, -1, 5], [2, 2, 2])) == [3, 4, 11]
