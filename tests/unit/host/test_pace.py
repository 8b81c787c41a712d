"""What the last large restore took decides how long the next one is expected to take."""

from __future__ import annotations

from pathlib import Path

import pytest

from ckpt.host.operations import JournaledOperations
from ckpt.host.pace import DEFAULT, FASTEST, NAME, SLOWEST, note_pace, read_pace
from ckpt.units import SECOND, Nanoseconds


def test_a_large_restore_is_remembered_and_a_small_one_is_not(tmp_path: Path) -> None:
    state = str(tmp_path)
    operation = JournaledOperations(state).begin("a test")
    assert read_pace(state) == DEFAULT
    note_pace(operation, 2 << 30, Nanoseconds(SECOND))
    found = read_pace(state)
    assert (1 << 30) < found < (2 << 30)
    note_pace(operation, 1 << 20, Nanoseconds(SECOND))
    assert read_pace(state) == found
    operation.end()


@pytest.mark.parametrize(
    ("content", "found"),
    [("", DEFAULT), ("x", DEFAULT), ("0", SLOWEST), ("-1", SLOWEST), ("9" * 30, FASTEST)],
)
def test_whatever_the_file_says_the_pace_can_be_believed(tmp_path: Path, content: str, found: int) -> None:
    (tmp_path / NAME).write_text(content)
    assert read_pace(str(tmp_path)) == found
