"""How fast this host restores memory, by the last large restore: a file of one number in the state directory.

It decides how far ahead the clocks of the next restore are set (decisions/0011); losing it costs some waiting.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Final

from ckpt.host.operations import JournaledOperation
from ckpt.units import SECOND, ByteCount, Nanoseconds

NAME: Final = "restore-pace"
LARGE_BYTES: Final = 256 << 20
"""A smaller restore says little: most of it is not memory."""

SLOWEST: Final = ByteCount(64 << 20)
DEFAULT: Final = ByteCount(1 << 30)
FASTEST: Final = ByteCount(64 << 30)
_SHARE: Final = 0.9
"""What is believed of it: a restore that is ready late shows it in its clocks, one that is early waits."""


def read_pace(state: str) -> ByteCount:
    """Bytes of images that this host restores in a second; DEFAULT where nothing is known."""
    with suppress(OSError, ValueError), open(f"{state}/{NAME}", encoding="ascii") as stream:
        return ByteCount(min(max(int(stream.read(32)), SLOWEST), FASTEST))
    return DEFAULT


def note_pace(operation: JournaledOperation, image_bytes: int, took_ns: Nanoseconds) -> None:
    """Remember that a restore of so many bytes took so long, if it says something. Never fails."""
    if image_bytes < LARGE_BYTES or took_ns <= 0:
        return
    path = operation.kept(NAME)
    with suppress(OSError):
        with open(f"{path}.new", "w", encoding="ascii") as stream:
            stream.write(f"{int(_SHARE * image_bytes * SECOND / took_ns)}\n")
        os.replace(f"{path}.new", path)


def size_of(images: str) -> int:
    """The bytes of all files of an image set."""
    with os.scandir(images) as entries:
        return sum(entry.stat(follow_symlinks=False).st_size for entry in entries)
