"""What changed between two checkpoints of a workload.

"Before" is the first of the two, "after" the second. Pages are of PAGE_BYTES.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple, Self

from ckpt.model.clocks import ClockAdvance
from ckpt.model.memory import AddressSpace, Area, AreaKind, PageState
from ckpt.units import CheckpointId, Pid

Value = str | int | bool | None


class Change(StrEnum):
    """What became of a thing."""

    CAME = "came"
    WENT = "went"
    CHANGED = "changed"


@dataclass(frozen=True, slots=True, kw_only=True)
class PageCounts:
    """Pages that are stored (or known as zeros) in both checkpoints and are the same or not, and those in one alone."""

    same: int = 0
    changed: int = 0
    new: int = 0
    gone: int = 0

    def __add__(self, other: Self) -> PageCounts:
        """The counts of both."""
        return PageCounts(
            same=self.same + other.same,
            changed=self.changed + other.changed,
            new=self.new + other.new,
            gone=self.gone + other.gone,
        )

    @property
    def is_quiet(self) -> bool:
        """Whether nothing changed."""
        return not (self.changed or self.new or self.gone)


class PageExtent(NamedTuple):
    """Pages of an area that follow one another, `first` counted from its beginning.

    `states` has a PageState for each in one byte, or a single byte that is true of all of them.
    """

    first: int
    length: int
    states: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class AreaPages:
    """The pages of one area: those in no extent are `rest`. An area may be larger than any memory.

    `counts` compares with the checkpoint before; without one every page is new.
    """

    area: Area
    rest: PageState
    extents: tuple[PageExtent, ...]
    counts: PageCounts

    def states(self, first: int = 0, count: int | None = None) -> bytes:
        """The PageState of `count` pages from `first` on, one byte a page; of all of them, if no count is given.

        The caller sees to it that so many bytes are no trouble.
        """
        count = max(0, self.area.pages - first) if count is None else count
        states = bytearray(bytes([self.rest]) * count)
        for extent in self.extents:
            begin, end = max(first, extent.first), min(first + count, extent.first + extent.length)
            if begin < end:
                states[begin - first : end - first] = (
                    extent.states * (end - begin)
                    if len(extent.states) == 1
                    else extent.states[begin - extent.first : end - extent.first]
                )
        return bytes(states)


@dataclass(frozen=True, slots=True, kw_only=True)
class SpacePages:
    """The pages of an address space, area by area. Shared memory has one area: its own, from 0 to its last page.

    `gone` are pages of the space before, by its areas, that are nowhere in this one.
    """

    space: AddressSpace
    areas: tuple[AreaPages, ...]
    gone: tuple[int, ...]

    @property
    def counts(self) -> PageCounts:
        """Those of all areas."""
        return sum((area.counts for area in self.areas), PageCounts(gone=sum(self.gone)))


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldChange:
    """One property that has another value."""

    name: str
    before: Value
    after: Value


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemChange:
    """One thing that came, went or changed; `pid` is its process after (before, if it went), None if it has none."""

    change: Change
    pid: Pid | None
    subject: str
    fields: tuple[FieldChange, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AreaChange:
    """A mapping that came, went or changed, or whose pages did. What went is told as it was before."""

    change: Change
    start: int
    end: int
    permissions: str
    kind: AreaKind
    path: str
    fields: tuple[FieldChange, ...]
    pages: PageCounts


@dataclass(frozen=True, slots=True, kw_only=True)
class SpaceChange:
    """The memory of a process, or shared memory. Mappings in which nothing changed count in `pages` alone.

    `pids` are those after (before, if it went); `name` as AddressSpace has it.
    """

    change: Change
    name: str
    pids: tuple[Pid, ...]
    areas: tuple[AreaChange, ...]
    pages: PageCounts


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointChanges:
    """All that changed. `passed` is how far the clocks went that the tasks see."""

    before: CheckpointId
    after: CheckpointId
    passed: ClockAdvance
    tasks: tuple[ItemChange, ...]
    descriptors: tuple[ItemChange, ...]
    memory: tuple[SpaceChange, ...]
    files: tuple[ItemChange, ...]
    sockets: tuple[ItemChange, ...]
    pipes: tuple[ItemChange, ...]
    limits: tuple[ItemChange, ...]
    warnings: tuple[str, ...]

    @property
    def pages(self) -> PageCounts:
        """Those of all memory."""
        return sum((space.pages for space in self.memory), PageCounts())
