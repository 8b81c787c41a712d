"""Find bytes in the memory of processes, and the text that is in it.

Rules: memory is read in order, in buffers of some MiB; a match may lie across pages and buffers. Of zeros that were
never written only the page beside what is stored is looked at.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from ckpt.flow.extents import TaskMemory
from ckpt.flow.memory import StoredMemory
from ckpt.model.memory import Area, Backing
from ckpt.units import PAGE_BYTES

MATCH_BYTES_MAX: Final = 1 << 16
"""The longest match of an expression, and the longest text, that is surely found whole."""

CONTEXT_BYTES: Final = 32
"""What is told of the memory before and after a match."""

_BUFFER_BYTES: Final = 4 << 20
_CHARACTER_BYTES_MAX: Final = 4

_Finder = Callable[[bytes, int], Iterator[tuple[int, int]]]
"""From a buffer and where to begin to where matches begin and end, in order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """Bytes that were found, and a few of those `before` and `after` them."""

    task: TaskMemory
    area: Area | None
    address: int
    content: bytes
    before: bytes
    after: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Pattern:
    """What is looked for; `reach` is the length that a match may have to be found whole."""

    find: _Finder
    reach: int


def literal(wanted: bytes) -> Pattern:
    """These bytes, at least one."""

    def find(buffer: bytes, begin: int) -> Iterator[tuple[int, int]]:
        while (found := buffer.find(wanted, begin)) >= 0:
            begin = found + len(wanted)
            yield found, begin

    return Pattern(find=find, reach=len(wanted))


def expression(wanted: re.Pattern[bytes]) -> Pattern:
    """What a regular expression matches; empty matches are left out."""

    def find(buffer: bytes, begin: int) -> Iterator[tuple[int, int]]:
        return (found.span() for found in wanted.finditer(buffer, begin) if found.end() > found.start())

    return Pattern(find=find, reach=MATCH_BYTES_MAX)


def text(characters_min: int) -> Pattern:
    """Printable ASCII and UTF-8, at least so many characters of it."""
    # The look ahead is what makes it quick: few of the bytes of memory get past it.
    wanted = re.compile(
        rb"(?=[\t\x20-\x7e\xc2-\xf4][\t\x20-\x7e\x80-\xf4]{%d})"
        rb"(?:[\t\x20-\x7e]|\xc2[\xa0-\xbf]|[\xc3-\xdf][\x80-\xbf]|\xe0[\xa0-\xbf][\x80-\xbf]"
        rb"|[\xe1-\xec\xee\xef][\x80-\xbf]{2}|\xed[\x80-\x9f][\x80-\xbf]|\xf0[\x90-\xbf][\x80-\xbf]{2}"
        rb"|[\xf1-\xf3][\x80-\xbf]{3}|\xf4[\x80-\x8f][\x80-\xbf]{2}){%d,%d}"
        % (characters_min - 1, characters_min, MATCH_BYTES_MAX // _CHARACTER_BYTES_MAX)
    )
    return expression(wanted)


def search(memory: StoredMemory, tasks: Iterable[TaskMemory], pattern: Pattern) -> Iterator[Match]:
    """Every match in the memory of these processes, in the order of the addresses of each.

    Raises:
        ObjectMissing, ObjectCorrupt: a part of the memory cannot be read.
    """
    overlap = max(pattern.reach - 1, CONTEXT_BYTES)
    for task in tasks:
        for stretch in _stretches(memory, task):
            yield from _in_stretch(memory, task, stretch, pattern.find, overlap)


def _in_stretch(
    memory: StoredMemory,
    task: TaskMemory,
    stretch: Iterator[tuple[int, bytes]],
    find: _Finder,
    overlap: int,
) -> Iterator[Match]:
    """The matches in buffers that follow one another without a gap."""
    kept, begin = b"", 0
    upcoming = next(stretch, None)
    while upcoming is not None:
        address, content = upcoming
        upcoming = next(stretch, None)
        address -= len(kept)
        buffer = kept + content
        # What begins behind this may not be whole yet: the next buffer begins there.
        last = len(buffer) if upcoming is None else max(begin, len(buffer) - overlap)
        for start, end in find(buffer, begin):
            if start >= last:
                break
            begin = end
            yield Match(
                task=task,
                area=memory.area_at(task, address + start),
                address=address + start,
                content=buffer[start:end],
                before=buffer[max(0, start - CONTEXT_BYTES) : start],
                after=buffer[end : end + CONTEXT_BYTES],
            )
        dropped = max(0, max(begin, last) - CONTEXT_BYTES)
        kept, begin = buffer[dropped:], max(begin, last) - dropped


def _stretches(memory: StoredMemory, task: TaskMemory) -> Iterator[Iterator[tuple[int, bytes]]]:
    """The memory in order: an iterator of buffers with their addresses for each part without gaps."""
    pieces = _pieces(memory, task)
    upcoming = next(pieces, None)

    def stretch() -> Iterator[tuple[int, bytes]]:
        nonlocal upcoming
        held: list[bytes] = []
        size, start = 0, 0 if upcoming is None else upcoming[0]
        while upcoming is not None and upcoming[0] == start + size:
            held.append(upcoming[1])
            size += len(upcoming[1])
            upcoming = next(pieces, None)
            if size >= _BUFFER_BYTES:
                yield start, b"".join(held)
                held, start, size = [], start + size, 0
        if held:
            yield start, b"".join(held)

    while upcoming is not None:
        yield stretch()


def _pieces(memory: StoredMemory, task: TaskMemory) -> Iterator[tuple[int, bytes]]:
    zeros = bytes(PAGE_BYTES)
    for area in task.space.areas:
        for extent in memory.area_extents(task, area):
            address = extent.start
            match extent.backing:
                case Backing.STORED:
                    for part in memory.read(extent):
                        yield address, part
                        address += len(part)
                case Backing.ZEROS:
                    size = extent.size_bytes
                    yield address, zeros[:size]
                    if size > PAGE_BYTES:
                        rest = min(size - PAGE_BYTES, PAGE_BYTES)
                        yield extent.end - rest, zeros[:rest]
                case Backing.FILE | Backing.ABSENT:
                    pass
