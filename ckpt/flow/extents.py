"""The parts of a mapping: which bytes of it are kept where.

Rules: a process's own pages come first; below them lie the shared memory or the file that it maps. A mapped file
is only read where the checkpoint brings it along.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from ckpt.errors import ObjectCorrupt
from ckpt.model.checkpoint import ImageSet, StoredFile
from ckpt.model.memory import AddressSpace, Area, AreaKind, Backing, PageRun
from ckpt.units import PAGE_BYTES, ByteCount, Pid

_OPAQUE: Final = frozenset((AreaKind.KERNEL, AreaKind.DEVICE))


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """Addresses whose bytes are kept in one way.

    `area` is None where nothing is mapped. `file` has the bytes that are stored, from `offset` on; for bytes that
    are in a mapped file alone, `offset` is their place in that one.
    """

    start: int
    end: int
    area: Area | None
    backing: Backing
    file: StoredFile | None = None
    offset: int = 0

    @property
    def size_bytes(self) -> ByteCount:
        """Its length."""
        return ByteCount(self.end - self.start)


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskMemory:
    """The memory of one process, or of several that share it.

    Their pids are as the host saw them, in the order of those in `space`, which are as the images call them.

    `images` is the image set that it is in, `shared` the shared memory of that set by the names of its spaces, and
    `kept_files` the contents of files that travel in the checkpoint, by the paths that they are mapped under.
    """

    pids: tuple[Pid, ...]
    name: str
    images: ImageSet
    space: AddressSpace
    shared: Mapping[str, AddressSpace]
    kept_files: Mapping[str, StoredFile]

    @property
    def pid(self) -> Pid:
        """The first of its processes."""
        return self.pids[0]


def extents_within(task: TaskMemory, area: Area, start: int, end: int) -> Iterator[Extent]:
    """The parts of a mapping from `start` to `end`, in order and without gaps.

    Raises:
        ObjectCorrupt: the image set lacks a file with its pages.
    """
    file = _pages_file(task, task.space)
    for first, last, run in _by_runs(task.space.runs, start, end):
        if run is None:
            yield from _below(task, area, first, last)
        else:
            yield _of_run(area, first, last, run, file, base=0)


def _below(task: TaskMemory, area: Area, start: int, end: int) -> Iterator[Extent]:
    if area.shared is not None:
        yield from _in_shared(task, area, start, end)
    elif area.kind in {AreaKind.FILE, AreaKind.SHARED_FILE}:
        yield from _in_file(task, area, start, end)
    else:
        backing = Backing.ABSENT if area.kind in _OPAQUE else Backing.ZEROS
        yield Extent(start=start, end=end, area=area, backing=backing)


def _in_shared(task: TaskMemory, area: Area, start: int, end: int) -> Iterator[Extent]:
    space = task.shared.get(area.shared_space)
    file = None if space is None else _pages_file(task, space)
    base = area.start - area.offset
    for first, last, run in _by_runs(() if space is None else space.runs, start - base, end - base):
        if run is None:
            yield Extent(start=first + base, end=last + base, area=area, backing=Backing.ZEROS)
        else:
            yield _of_run(area, first + base, last + base, run, file, base=base)


def _in_file(task: TaskMemory, area: Area, start: int, end: int) -> Iterator[Extent]:
    offset = area.offset + start - area.start
    kept = task.kept_files.get(area.path)
    if kept is None:
        yield Extent(start=start, end=end, area=area, backing=Backing.FILE, offset=offset)
        return
    stored = min(end, max(start, start + kept.size_bytes - offset))
    # The page that the file ends in goes on with zeros; behind it there is nothing.
    filled = min(end, -(-stored // PAGE_BYTES) * PAGE_BYTES)
    if start < stored:
        yield Extent(start=start, end=stored, area=area, backing=Backing.STORED, file=kept, offset=offset)
    if stored < filled:
        yield Extent(start=stored, end=filled, area=area, backing=Backing.ZEROS)
    if filled < end:
        yield Extent(start=filled, end=end, area=area, backing=Backing.ABSENT)


def _by_runs(runs: tuple[PageRun, ...], start: int, end: int) -> Iterator[tuple[int, int, PageRun | None]]:
    """The parts from `start` to `end`, and the run that has each; None between runs."""
    number = max(0, bisect_right(runs, start // PAGE_BYTES, key=lambda run: run.page) - 1)
    while start < end and number < len(runs):
        run = runs[number]
        first, last = run.page * PAGE_BYTES, (run.page + run.count) * PAGE_BYTES
        if first >= end:
            break
        if start < last:
            if start < first:
                yield start, first, None
            begin = max(start, first)
            yield begin, min(end, last), run
            start = min(end, last)
        number += 1
    if start < end:
        yield start, end, None


def _of_run(area: Area, start: int, end: int, run: PageRun, file: StoredFile | None, *, base: int) -> Extent:
    if run.chunk is None or file is None:
        return Extent(start=start, end=end, area=area, backing=Backing.ZEROS)
    offset = run.chunk * PAGE_BYTES + (start - base) - run.page * PAGE_BYTES
    return Extent(start=start, end=end, area=area, backing=Backing.STORED, file=file, offset=offset)


def _pages_file(task: TaskMemory, space: AddressSpace) -> StoredFile | None:
    """The file with the pages of an address space; None if nothing is stored."""
    if not space.pages_file:
        return None
    for file in task.images.files:
        if file.name == space.pages_file:
            return file
    raise ObjectCorrupt(
        kind="image set",
        name=str(task.images.root),
        reason=f"{space.name} names {space.pages_file}, which is not in it",
    )
