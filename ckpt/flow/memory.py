"""The memory of a stored checkpoint: which bytes a process had at an address, and where they are kept.

Rules: only metadata is read to know it; bytes are read when they are asked for, a window at a time, so that no
more than that is ever held. What a page map promises and the pages file does not have is an error of the store.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from typing import Final

from ckpt.errors import Usage
from ckpt.flow.extents import Extent, TaskMemory, extents_within
from ckpt.flow.ports import MemoryLayouts, Store
from ckpt.model.checkpoint import Checkpoint, ImageSet, StoredFile
from ckpt.model.memory import Area, Backing
from ckpt.model.workload import Tree
from ckpt.units import ByteCount, CheckpointId

WINDOW_BYTES: Final = 1 << 20
"""What is read of a file at once."""

_NAMED_MAX: Final = 20


class StoredMemory:
    """The memory of one checkpoint."""

    def __init__(self, store: Store, layouts: MemoryLayouts, checkpoint: CheckpointId) -> None:
        self._store = store
        self.id = checkpoint
        self.checkpoint: Checkpoint = store.load(checkpoint).checkpoint
        self._window: tuple[tuple[str, int], bytes] = (("", 0), b"")
        kept = _kept_files(self.checkpoint)
        sets = zip(self.checkpoint.workload.trees, self.checkpoint.image_sets, strict=True)
        self.tasks: tuple[TaskMemory, ...] = tuple(
            task for tree, images in sets for task in self._tasks_of(layouts, tree, images, kept)
        )

    def task(self, pid: int | None) -> TaskMemory:
        """The memory of the process with this pid; None for the only one.

        Raises:
            Usage: there is none, or there are several to choose from; names them.
        """
        found = [task for task in self.tasks if pid in task.pids] if pid is not None else list(self.tasks)
        if len(found) == 1:
            return found[0]
        named = ", ".join(
            f"{task.pid} ({task.name})" if task.name else str(task.pid) for task in self.tasks[:_NAMED_MAX]
        )
        more = f" and {len(self.tasks) - _NAMED_MAX} more" if len(self.tasks) > _NAMED_MAX else ""
        if pid is not None:
            raise Usage(
                problem=f"The checkpoint {self.id[:12]} has no memory of a process {pid}.",
                remedy=f"It has that of {named}{more}.",
            )
        raise Usage(
            problem=f"The checkpoint {self.id[:12]} has the memory of {len(self.tasks)} processes.",
            remedy=f"Choose one with --pid: {named}{more}.",
        )

    def area_at(self, task: TaskMemory, address: int) -> Area | None:
        """The mapping that has this address."""
        areas = task.space.areas
        number = bisect_right(areas, address, key=lambda area: area.start) - 1
        return areas[number] if number >= 0 and address < areas[number].end else None

    def extents(self, task: TaskMemory, start: int, end: int) -> Iterator[Extent]:
        """Everything from `start` to `end` in order, without gaps; what is not mapped too."""
        areas = task.space.areas
        number = max(0, bisect_right(areas, start, key=lambda area: area.start) - 1)
        for area in areas[number:]:
            first, last = max(start, area.start), min(end, area.end)
            if first >= last:
                if area.start >= end:
                    break
                continue
            if start < first:
                yield Extent(start=start, end=first, area=None, backing=Backing.ABSENT)
            yield from extents_within(task, area, first, last)
            start = last
        if start < end:
            yield Extent(start=start, end=end, area=None, backing=Backing.ABSENT)

    def area_extents(self, task: TaskMemory, area: Area) -> Iterator[Extent]:
        """The parts of one mapping."""
        return extents_within(task, area, area.start, area.end)

    def stored_bytes(self, task: TaskMemory, area: Area) -> ByteCount:
        """How many bytes of a mapping the checkpoint has; shared memory counts wherever it is mapped."""
        return ByteCount(
            sum(
                extent.size_bytes
                for extent in self.area_extents(task, area)
                if extent.backing is Backing.STORED
            )
        )

    def read(self, extent: Extent) -> Iterator[bytes]:
        """The bytes of an extent that is stored, in order, at most WINDOW_BYTES at once.

        Raises:
            ObjectMissing, ObjectCorrupt: what the store says.
        """
        assert extent.file is not None
        offset, left = extent.offset, extent.size_bytes
        while left > 0:
            begin = offset // WINDOW_BYTES * WINDOW_BYTES
            part = self._read_window(extent.file, begin)[offset - begin :][:left]
            if not part:
                # Lets the store say what is wrong with what the page map promises.
                part = self._store.read_range(self.id, extent.file, offset, min(left, WINDOW_BYTES))
            yield part
            offset, left = offset + len(part), ByteCount(left - len(part))

    def _read_window(self, file: StoredFile, begin: int) -> bytes:
        key = file.root, begin
        if self._window[0] != key:
            size = max(0, min(WINDOW_BYTES, file.size_bytes - begin))
            self._window = key, self._store.read_range(self.id, file, begin, size) if size else b""
        return self._window[1]

    def _tasks_of(
        self, layouts: MemoryLayouts, tree: Tree, images: ImageSet, kept: dict[str, StoredFile]
    ) -> Iterator[TaskMemory]:
        wanted = set(layouts.wanted(file.name for file in images.files))

        def fill(directory: str) -> None:
            for file in images.files:
                if file.name in wanted:
                    self._store.fetch(self.id, file, f"{directory}/{file.name}")

        spaces = layouts.read(fill)
        shared = {space.name: space for space in spaces if not space.pids}
        processes = {process.pid_inside: process for process in tree.processes}
        for space in spaces:
            if space.pids:
                # Images that another tool made may name processes that the manifest does not.
                known = [processes.get(pid) for pid in space.pids]
                yield TaskMemory(
                    pids=tuple(
                        pid if process is None else process.pid
                        for pid, process in zip(space.pids, known, strict=True)
                    ),
                    name="" if known[0] is None else known[0].name,
                    images=images,
                    space=space,
                    shared=shared,
                    kept_files=kept,
                )


def _kept_files(checkpoint: Checkpoint) -> dict[str, StoredFile]:
    """The contents of files that travel in the checkpoint, by the paths that they are mapped under."""
    carried = {file.path: file.content for file in checkpoint.carried_files}
    return {file.path: file.content for file in checkpoint.saved_files} | carried
