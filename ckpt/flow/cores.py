"""Which parts of a process's memory a core file has.

Rules: what a mapped file has alone is left to that file. Zeros are written as holes, but for long stretches that were
never touched: no file system takes the reserved terabytes of some runtimes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from ckpt.flow.extents import TaskMemory
from ckpt.flow.memory import StoredMemory
from ckpt.model.memory import Area, Backing

_HOLE_BYTES_MAX: Final = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class CorePart:
    """A part of a mapping whose bytes are all in the core file, or all left out."""

    area: Area
    start: int
    end: int
    is_filled: bool


def core_parts(memory: StoredMemory, task: TaskMemory) -> Iterator[CorePart]:
    """All mappings in order, in as few parts as can be.

    Raises:
        ObjectCorrupt: the image set is not whole.
    """
    for area in task.space.areas:
        start, is_filled = area.start, False
        for extent in memory.area_extents(task, area):
            fills = extent.backing is Backing.STORED or (
                extent.backing is Backing.ZEROS and extent.size_bytes <= _HOLE_BYTES_MAX
            )
            if fills != is_filled:
                if start < extent.start:
                    yield CorePart(area=area, start=start, end=extent.start, is_filled=is_filled)
                start, is_filled = extent.start, fills
        yield CorePart(area=area, start=start, end=area.end, is_filled=is_filled)


def core_contents(memory: StoredMemory, task: TaskMemory, part: CorePart) -> Iterator[tuple[int, bytes]]:
    """The stored bytes of a part with their distance from its start, in order; the rest is zeros.

    Raises:
        ObjectMissing, ObjectCorrupt: what the store says.
    """
    if part.is_filled:
        for extent in memory.extents(task, part.start, part.end):
            if extent.backing is Backing.STORED:
                place = extent.start - part.start
                for content in memory.read(extent):
                    yield place, content
                    place += len(content)
