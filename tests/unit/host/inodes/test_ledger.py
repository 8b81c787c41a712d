"""The ledger: what it takes back, what it ignores, and that nothing in it leads elsewhere."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from harness.moved import listing

from ckpt.errors import OsRefused
from ckpt.host.inodes.ledger import (
    GoalChanged,
    Ledger,
    Made,
    Overwritten,
    Swapped,
    read_ledger,
    settle,
    take_back,
)

LINES = [
    Swapped(path="/data/a", other=".ckpt-1", device=1, inode=2),
    Overwritten(path="/data/a", kept=".ckpt-2", device=1, inode=2, content=True),
    Made(path="/data/b", device=1, inode=3),
    GoalChanged(path="/sys/fs/ext4/none/inode_goal", former=0),
]


def test_what_was_noted_is_read_in_its_order_and_a_line_that_was_cut_off_is_not(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path / "ledger"))
    assert read_ledger(ledger.path) == []
    for line in LINES:
        ledger.note(line)
    assert read_ledger(ledger.path) == LINES
    os.truncate(ledger.path, os.path.getsize(ledger.path) - 1)
    assert read_ledger(ledger.path) == LINES[:-1]


@pytest.mark.parametrize(
    "line",
    [
        b"\xff\x00",
        b"7",
        b'["Swapped", {}]',
        b'["Unheard", {"path": "/x"}]',
        json.dumps(
            ["Swapped", {"path": "/data/a", "other": ".ckpt-/../../etc/shadow", "device": 1, "inode": 2}]
        ).encode(),
        json.dumps(
            [
                "Overwritten",
                {"path": "/data/a", "kept": "passwd", "device": 1, "inode": 2, "content": True},
            ]
        ).encode(),
    ],
)
def test_a_line_that_is_none_is_left_out(tmp_path: Path, line: bytes) -> None:
    ledger = Ledger(str(tmp_path / "ledger"))
    with open(ledger.path, "wb") as stream:
        stream.write(line + b"\n")
    ledger.note(LINES[0])
    assert read_ledger(ledger.path) == LINES[:1]


def test_lines_whose_change_was_never_made_change_nothing(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a")
    status = os.stat(tmp_path / "a")
    lines = [
        Swapped(path=f"{tmp_path}/a", other=".ckpt-1", device=status.st_dev, inode=status.st_ino),
        Overwritten(
            path=f"{tmp_path}/a", kept=".ckpt-2", device=status.st_dev, inode=status.st_ino, content=True
        ),
        Made(path=f"{tmp_path}/a", device=status.st_dev, inode=status.st_ino + 1),
        Made(path=f"{tmp_path}/gone/b", device=1, inode=3),
    ]
    before = listing(tmp_path)
    take_back(lines)
    settle(lines)
    assert listing(tmp_path) == before


def test_a_content_is_not_taken_back_into_another_file_and_the_others_are(tmp_path: Path) -> None:
    (tmp_path / "made").write_bytes(b"x")
    (tmp_path / "a").write_bytes(b"somebody else's")
    (tmp_path / ".ckpt-2").write_bytes(b"former")
    made = os.stat(tmp_path / "made")
    lines = [
        Made(path=f"{tmp_path}/made", device=made.st_dev, inode=made.st_ino),
        Overwritten(path=f"{tmp_path}/a", kept=".ckpt-2", device=1, inode=2, content=True),
    ]
    with pytest.raises(OsRefused, match="another file is there now") as raised:
        take_back(lines)
    assert ".ckpt-2" in raised.value.advice
    assert sorted(os.listdir(tmp_path)) == [".ckpt-2", "a"]
    assert (tmp_path / "a").read_bytes() == b"somebody else's"


def test_the_goal_of_a_line_is_written_only_where_goals_are(tmp_path: Path) -> None:
    (tmp_path / "inode_goal").write_bytes(b"5")
    take_back([GoalChanged(path=f"{tmp_path}/inode_goal", former=0)])
    assert (tmp_path / "inode_goal").read_bytes() == b"5"
