"""Which files an image set names: what the tasks held by a path, as their mount namespace's root sees it.

Rule: names on Linux are bytes; one that is no UTF-8 comes as bytes or not, as the version of protobuf has it.
Source: images/fdinfo.proto (files.img), images/regfile.proto; criu/files-reg.c.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ckpt.host.criu.imagefile import read_entries


def held_paths(images: Path) -> frozenset[str]:
    """The paths of all files and directories of an image set: open, mapped, executed, or stood in.

    Raises:
        ObjectCorrupt, OsRefused: it cannot be read.
    """
    entries = read_entries(images / "files.img", "FILES", "file_entry")
    return frozenset(path_of(entry.reg) for entry in entries if entry.HasField("reg"))


def path_of(regular: Any) -> str:
    """The absolute path in the entry of a regular file, as os.fsdecode() has it."""
    return "/" + os.fsdecode(regular.name).lstrip("/")
