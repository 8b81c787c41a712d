"""Which files an image set names: what the tasks held by a path, as their mount namespace's root sees it.

Source: images/fdinfo.proto (files.img), images/regfile.proto; criu/files-reg.c.
"""

from __future__ import annotations

from pathlib import Path

from ckpt.host.criu.imagefile import read_entries


def held_paths(images: Path) -> frozenset[str]:
    """The paths of all files and directories of an image set: open, mapped, executed, or stood in.

    Raises:
        ObjectCorrupt, OsRefused: it cannot be read.
    """
    entries = read_entries(images / "files.img", "FILES", "file_entry")
    return frozenset(f"/{entry.reg.name.lstrip('/')}" for entry in entries if entry.HasField("reg"))
