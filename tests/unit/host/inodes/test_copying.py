"""Copies into files that held something else: holes, tails, attributes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckpt.host.inodes import copying

PIECE = 1 << 16
Pieces = list[int]


@contextmanager
def opened(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        yield fd
    finally:
        os.close(fd)


def lay(fd: int, pieces: Pieces, tail: int) -> None:
    """A piece is a hole (0), zeros (1) or bytes; `tail` more bytes follow."""
    os.ftruncate(fd, 0)
    for number, piece in enumerate(pieces):
        if piece:
            os.pwrite(fd, bytes([piece - 1]) * PIECE, number * PIECE)
    os.ftruncate(fd, len(pieces) * PIECE)
    if tail:
        os.pwrite(fd, b"t" * tail, len(pieces) * PIECE)


PIECES = st.lists(st.integers(0, 3), max_size=5)


@settings(max_examples=60, deadline=None)
@given(source=PIECES, target=PIECES, tail=st.integers(0, 5000), zeros=st.booleans())
def test_whatever_a_file_held_it_holds_the_source_afterwards(
    tmp_path_factory: pytest.TempPathFactory, source: Pieces, target: Pieces, tail: int, *, zeros: bool
) -> None:
    folder = tmp_path_factory.mktemp("copy")
    with opened(folder / "source") as one, opened(folder / "target") as other:
        lay(one, source, tail)
        lay(other, target, 5000 - tail)
        copying.copy_content(one, other, zeros_are_holes=zeros)
        assert copying.same_content(one, other)
        assert (folder / "source").read_bytes() == (folder / "target").read_bytes()
        if zeros:
            data = sum(piece > 1 for piece in source) * PIECE + tail
            assert os.fstat(other).st_blocks * 512 <= data + 2 * PIECE


def test_attributes_are_equal_when_they_were_copied_and_not_before(tmp_path: Path) -> None:
    with opened(tmp_path / "source") as one, opened(tmp_path / "target") as other:
        os.fchmod(one, 0o4751)
        os.setxattr(other, "user.old", b"x")
        os.setxattr(one, "user.new", b"y")
        os.utime(one, ns=(1, 2_000_000_003))
        assert not copying.same_attributes(one, other)
        copying.copy_attributes(one, other)
        assert copying.same_attributes(one, other)
        assert os.listxattr(other) == ["user.new"]
        assert os.fstat(other).st_mode & 0o7777 == 0o4751


def test_files_of_one_length_and_different_content_are_not_the_same(tmp_path: Path) -> None:
    with opened(tmp_path / "source") as one, opened(tmp_path / "target") as other:
        lay(one, [2, 3], 7)
        lay(other, [2, 2], 7)
        assert not copying.same_content(one, other)
