"""All that one image set holds, without its pages.

Source: criu/cr-dump.c (dump_one_task) writes these images.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from ckpt.errors import ObjectCorrupt
from ckpt.host.criu.areas import address_spaces
from ckpt.host.criu.imagefile import read_entry
from ckpt.host.criu.pstree import ImageTask, read_tasks, task_ids
from ckpt.host.criu.reading.open_files import OpenFiles
from ckpt.host.criu.reading.pipes import read_pipes
from ckpt.host.criu.reading.sockets import read_sockets
from ckpt.host.criu.reading.tasks import read_task
from ckpt.model.contents import Descriptor, Holder, TaskState, TreeContents
from ckpt.model.memory import AddressSpace
from ckpt.units import Pid

DESCRIPTORS_MAX: Final = 1 << 21
"""Of one image set: tasks that share a table make many of a few bytes."""


def read_contents(images: Path, root: Pid, pids: Mapping[Pid, Pid]) -> TreeContents:
    """What the image set in a directory holds; it may lack the pages files.

    Args:
        images: The set.
        root: The tree's root in the checkpoint.
        pids: From a number in the images to the host's; others stay as they are.

    Raises:
        ObjectCorrupt, OsRefused: an image cannot be read.
    """
    tasks = read_tasks(images)
    files = OpenFiles(images)
    root_ids = read_entry(images / "inventory.img", "INVENTORY", "inventory_entry").root_ids
    read = tuple(read_task(images, task, files, pids, root_ids) for task in tasks)
    alive = [task for task, found in zip(tasks, read, strict=True) if found.state is not TaskState.ZOMBIE]
    descriptors = _descriptors(images, alive, files, pids)
    holders = _holders(descriptors)
    return TreeContents(
        root=root,
        tasks=read,
        descriptors=descriptors,
        sockets=read_sockets(images, files, holders),
        pipes=read_pipes(images, files, holders),
        memory=tuple(_on_host(space, pids) for space in address_spaces(images)),
    )


def _descriptors(
    images: Path, tasks: Sequence[ImageTask], files: OpenFiles, pids: Mapping[Pid, Pid]
) -> tuple[Descriptor, ...]:
    tables: dict[int, tuple[tuple[int, bool, int], ...]] = {}
    found: list[Descriptor] = []
    for task in tasks:
        files_id = task_ids(images, task.pid).files_id
        if files_id not in tables:
            tables[files_id] = files.table(files_id)
        if len(found) + len(tables[files_id]) > DESCRIPTORS_MAX:
            raise ObjectCorrupt(
                kind="image set",
                name=f"of process {tasks[0].pid} inside",
                reason=f"its tasks have more than {DESCRIPTORS_MAX} descriptors",
            )
        found += (
            Descriptor(
                pid=pids.get(task.pid, task.pid), fd=fd, close_on_exec=close_on_exec, file=files.file(number)
            )
            for fd, close_on_exec, number in tables[files_id]
        )
    return tuple(found)


def _holders(descriptors: Iterable[Descriptor]) -> dict[int, tuple[Holder, ...]]:
    """From the number of an open file to who has it."""
    found: dict[int, list[Holder]] = {}
    for each in descriptors:
        found.setdefault(each.file.number, []).append(
            Holder(pid=each.pid, fd=each.fd, access=each.file.access)
        )
    return {number: tuple(holders) for number, holders in found.items()}


def _on_host(space: AddressSpace, pids: Mapping[Pid, Pid]) -> AddressSpace:
    return replace(space, pids=tuple(pids.get(pid, pid) for pid in space.pids))
