"""Let CRIU take files as they are now: without their recorded sizes and modes it compares neither.

What it does without these fields: it opens the file and goes on where the descriptor stood; without the size it
does not compare a program's build-id either.
Source: images/regfile.proto; criu/files-reg.c, open_path() and validate_file().
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Final

from ckpt.host.criu.imagefile import read_entries, write_entries
from ckpt.host.criu.paths import path_of

_COMPARED: Final = ("size", "mode")


def accept_changed(images: Path, paths: Collection[str]) -> None:
    """Take the recorded size and mode of the regular files at these absolute paths out of an image set.

    Raises:
        ObjectCorrupt: the images are not what they should be.
        OsRefused: they cannot be read or written.
    """
    path = images / "files.img"
    entries = read_entries(path, "FILES", "file_entry")
    changed = False
    for entry in entries:
        if entry.HasField("reg") and path_of(entry.reg) in paths:
            for name in _COMPARED:
                changed = changed or entry.reg.HasField(name)
                entry.reg.ClearField(name)
    if changed:
        write_entries(path, "FILES", entries)
