"""Names for the numbers and strings that this package passes around, so that mypy keeps them apart.

Rule: a quantity's unit stands in its type or at the end of its name, never only in a comment.
"""

from __future__ import annotations

from typing import Final, NewType

ByteCount = NewType("ByteCount", int)
Nanoseconds = NewType("Nanoseconds", int)
"""A duration, or an instant of the clock that the name says."""

Pid = NewType("Pid", int)
"""A process id as the initial PID namespace of this host sees it, unless the name says otherwise."""

InodeNumber = NewType("InodeNumber", int)
DeviceNumber = NewType("DeviceNumber", int)
"""A device number as stat(2) gives it: os.makedev(major, minor)."""

Digest = NewType("Digest", str)
"""A SHA-256 as 64 lower-case hexadecimal digits."""

CheckpointId = NewType("CheckpointId", str)
"""The digest of a manifest's bytes, as 64 lower-case hexadecimal digits."""

JobName = NewType("JobName", str)
Tag = NewType("Tag", str)

MILLISECOND: Final = Nanoseconds(1_000_000)
SECOND: Final = Nanoseconds(1_000_000_000)

PAGE_BYTES: Final = 4096
"""CRIU's page size on x86-64 and on arm64 with 4 KiB pages."""

CHUNK_BYTES: Final = 4096
"""The unit of deduplication: a page of memory, or as much of any other file; part of the format (F32)."""


def milliseconds(duration: Nanoseconds) -> float:
    """The duration in milliseconds, rounded to the microsecond, as the JSON output gives it."""
    return round(duration / 1e6, 3)


def human_bytes(count: int) -> str:
    """The count with a binary unit, for people: 1536 becomes "1.5 KiB"."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(size) < 1024 or unit == "TiB":
            return f"{count} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    raise AssertionError
