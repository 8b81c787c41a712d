"""Files with holes: nothing half-written stays, and nothing but files is replaced."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ckpt.errors import OsRefused
from ckpt.host.sparse_file import sparse_file


def test_a_sparse_file_replaces_another_only_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "core"
    path.write_text("the former one")
    with pytest.raises(ZeroDivisionError), sparse_file(str(path), 1 << 30) as file:
        file.write(5, b"x" * (1 // 0))
    assert path.read_text() == "the former one"
    assert os.listdir(tmp_path) == ["core"]
    with sparse_file(str(path), 1 << 30) as file:
        file.write(1 << 20, b"here")
    assert path.stat().st_size == 1 << 30
    assert path.stat().st_blocks * 512 < 1 << 20
    assert path.stat().st_mode & 0o777 == 0o600


def test_what_is_no_regular_file_is_never_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", tmp_path, tmp_path / "none" / "core"):
        with pytest.raises(OsRefused), sparse_file(str(path), 10):
            pass
    assert os.listdir(tmp_path) == ["fifo"]


def test_a_size_that_no_file_can_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OsRefused, match=str(1 << 63)), sparse_file(str(tmp_path / "core"), 1 << 63):
        pass
    assert os.listdir(tmp_path) == []
