"""Where archives are written and read: whole or not at all, pipes as they are."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from ckpt.errors import NoSpace, OsRefused
from ckpt.store.archive_place import reading, writing


def write_half(place: str) -> None:
    with writing(place) as write:
        write(b"half")
        raise LookupError


def test_a_file_has_its_new_content_when_all_of_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "archive"
    path.write_text("old")
    with writing(str(path)) as write:
        write(b"new ")
        write(b"content")
        assert path.read_text() == "old"
    assert path.read_text() == "new content"
    assert path.stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["archive"]


def test_a_file_is_left_as_it_was_when_writing_fails(tmp_path: Path) -> None:
    path = tmp_path / "archive"
    path.write_text("old")
    with pytest.raises(LookupError):
        write_half(str(path))
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["archive"]


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("archive")
    with writing(str(tmp_path / "link")) as write:
        write(b"content")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "archive").read_text() == "content"


def test_a_pipe_is_written_to_and_read_from(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    content = bytes(range(256)) * 2000
    found = []

    def drain() -> None:
        with reading(str(fifo)) as read:
            while piece := read(100_000):
                found.append(piece)

    reader = threading.Thread(target=drain)
    reader.start()
    with writing(str(fifo)) as write:
        write(content)
    reader.join()
    assert b"".join(found) == content


def test_places_that_cannot_be_used_are_refused_by_their_names(tmp_path: Path) -> None:
    nowhere = str(tmp_path / "no" / "where")
    with pytest.raises(OsRefused, match="where"), writing(nowhere):
        pass
    with pytest.raises(OsRefused, match="where"), reading(nowhere):
        pass
    with reading(str(tmp_path)) as read, pytest.raises(OsRefused, match="directory"):
        read(1)


def test_a_full_device_is_no_space() -> None:
    with pytest.raises(NoSpace), writing("/dev/full") as write:
        write(b"x")
