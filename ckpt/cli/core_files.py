"""A core file of one process of a checkpoint, put together from its memory and what its images say of its threads."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from ckpt.flow.cores import core_contents, core_parts
from ckpt.flow.extents import TaskMemory
from ckpt.flow.memory import StoredMemory
from ckpt.host.criu.core_notes import core_images, core_notes, thread_names
from ckpt.host.elf_core import Segment, lay_out
from ckpt.host.memory_layouts import ImageLayouts
from ckpt.host.sparse_file import sparse_file
from ckpt.store.store import Store
from ckpt.units import ByteCount, CheckpointId, Pid


@dataclass(frozen=True, slots=True, kw_only=True)
class CoreFile:
    """What was written: the process as the host saw it, its threads as it saw them itself, the size with all holes."""

    pid: Pid
    threads: tuple[tuple[Pid, str], ...]
    size_bytes: ByteCount


def export_core(store: Store, checkpoint: CheckpointId, file: str, pid: int | None) -> CoreFile:
    """Write the core file of a process; None for the only one.

    Raises:
        Usage: there is no such process, or there are several to choose from.
        FormatUnknown: it is no process of x86-64.
        OsRefused: the file cannot be written; what was there stays.
        StoreError: the checkpoint is not whole.
    """
    memory = StoredMemory(store, ImageLayouts(), checkpoint)
    task = memory.task(pid)
    chosen = task.pid if pid is None else Pid(pid)
    notes, threads = _notes(store, memory, task, chosen)
    parts = tuple(core_parts(memory, task))
    layout = lay_out(
        notes,
        [
            Segment(
                start=part.start,
                end=part.end,
                permissions=part.area.permissions,
                has_bytes=part.is_filled,
            )
            for part in parts
        ],
    )
    with sparse_file(os.path.realpath(file), layout.size_bytes) as target:
        target.write(0, layout.head)
        for part, offset in zip(parts, layout.offsets, strict=True):
            for place, content in core_contents(memory, task, part):
                target.write(offset + place, content)
    return CoreFile(pid=chosen, threads=threads, size_bytes=layout.size_bytes)


def _notes(
    store: Store, memory: StoredMemory, task: TaskMemory, pid: Pid
) -> tuple[bytes, tuple[tuple[Pid, str], ...]]:
    inside = task.space.pids[task.pids.index(pid)]
    processes = (process for tree in memory.checkpoint.workload.trees for process in tree.processes)
    command_line = next((process.command_line for process in processes if process.pid == pid), ())
    with tempfile.TemporaryDirectory(prefix="ckpt-") as directory:
        folder = Path(directory)
        files = {image.name: image for image in task.images.files}

        def bring(name: str) -> None:
            # What is missing is told by whoever reads it.
            if name in files:
                store.fetch(memory.id, files[name], str(folder / name))

        bring("pstree.img")
        for name in core_images(folder, inside):
            bring(name)
        notes = core_notes(folder, inside, command_line, task.space.areas)
        return notes, thread_names(folder, inside)
