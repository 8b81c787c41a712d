"""Recorded paths may lie; names of one file are found."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ckpt.host.inodes.places import Refused, is_plain, opened_place


@pytest.mark.parametrize(
    "path",
    [
        "",
        "a",
        "/",
        "//a",
        "/a/",
        "/a/../b",
        "/./a",
        "/a//b",
        "/a/.",
        "/a\0b",
        "pipe:[1]",
        "/" + "a/" * 3000 + "a",
    ],
)
def test_a_path_that_is_not_absolute_and_plain_is_refused(path: str) -> None:
    assert not is_plain(path)
    with pytest.raises(Refused, match="not absolute and plain"), opened_place(path):
        pass


@pytest.mark.parametrize("path", ["/a", "/a b/c", "/a/...", "/a/b.c~"])
def test_a_plain_path_is_plain(path: str) -> None:
    assert is_plain(path)


def test_a_symbolic_link_on_the_way_is_not_followed_nor_the_file_itself(tmp_path: Path) -> None:
    folder = tmp_path.resolve() / "folder"
    folder.mkdir()
    (folder / "file").write_bytes(b"x")
    (folder / "link").symlink_to("file")
    (folder.parent / "aside").symlink_to(folder)
    with pytest.raises(Refused, match="symbolic link"), opened_place(f"{folder.parent}/aside/file"):
        pass
    with opened_place(f"{folder}/link") as place:
        assert place.exists()
        with pytest.raises(OSError, match="symbolic links"), place.opened(os.O_RDONLY):
            pass


def test_all_names_of_a_file_in_its_directory_are_found(tmp_path: Path) -> None:
    folder = tmp_path.resolve()
    (folder / "a").write_bytes(b"x")
    (folder / "b").write_bytes(b"x")
    os.link(folder / "a", folder / "c")
    with opened_place(f"{folder}/a") as place:
        assert sorted(place.names_of(place.status())) == ["a", "c"]
