"""The tasks of an image set, and which namespaces are their own.

Source: images/pstree.proto, images/inventory.proto, images/core.proto; criu/image.c (prepare_inventory:
`root_ids` are the ids of CRIU itself), criu/namespaces.c (an equal id is the same namespace), criu/pstree.c (dump_pstree).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ckpt.errors import ObjectCorrupt
from ckpt.host.criu.imagefile import read_entries, read_entry
from ckpt.units import Pid

_NAMESPACES: Final = ("pid", "net", "ipc", "uts", "mnt", "user", "cgroup", "time")


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageTask:
    """A process of an image set; all numbers are as its own PID namespace sees them. `threads` includes `pid`."""

    pid: Pid
    parent: Pid
    group: Pid
    session: Pid
    threads: tuple[Pid, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Inventory:
    """What an image set says of itself.

    `run_id` names the dump, and with it CRIU's nftables table; "" in images of CRIU before 4.0.
    `own_namespaces` are the kinds (as in /proc/PID/ns) that the root task did not share with CRIU.
    `closes_connections` says that open TCP connections come back closed (--tcp-close).
    """

    run_id: str
    own_namespaces: frozenset[str]
    closes_connections: bool


def read_tasks(images: Path) -> tuple[ImageTask, ...]:
    """The processes of an image set, parents before children; the first is the root.

    Raises:
        ObjectCorrupt, OsRefused: pstree.img cannot be read.
    """
    entries = read_entries(images / "pstree.img", "PSTREE", "pstree_entry")
    if not entries:
        raise _corrupt("it has no task")
    tasks = _tasks(entries)
    _check_numbers(tasks)
    return tasks


def _tasks(entries: Iterable[Any]) -> tuple[ImageTask, ...]:
    return tuple(
        ImageTask(
            pid=Pid(entry.pid),
            parent=Pid(entry.ppid),
            group=Pid(entry.pgid),
            session=Pid(entry.sid),
            # CRIU never sets the number of a zombie's one thread: what is written there is what lay in its memory.
            threads=tuple(Pid(thread) for thread in entry.threads)
            if len(entry.threads) > 1
            else (Pid(entry.pid),),
        )
        for entry in entries
    )


def _check_numbers(tasks: tuple[ImageTask, ...]) -> None:
    """Refuse a process, or a thread of one, that is there twice, and a parent that comes after its child."""
    all_pids = {task.pid for task in tasks}
    seen: set[Pid] = set()
    for task in tasks:
        if task.pid in seen or len(set(task.threads)) != len(task.threads):
            raise _corrupt(f"the process {task.pid}, or a thread of it, is there twice")
        if task.parent in all_pids and task.parent not in seen:
            raise _corrupt(f"the process {task.pid} comes before its parent {task.parent}")
        seen.add(task.pid)


def _corrupt(reason: str) -> ObjectCorrupt:
    return ObjectCorrupt(kind="image file", name="pstree.img", reason=reason)


def read_inventory(images: Path) -> Inventory:
    """What an image set says of itself.

    Raises:
        ObjectCorrupt, OsRefused: inventory.img, pstree.img or the root task's image cannot be read.
    """
    inventory = read_entry(images / "inventory.img", "INVENTORY", "inventory_entry")
    root = task_ids(images, read_tasks(images)[0].pid)
    own = {kind for kind in _NAMESPACES if _id(root, kind) != _id(inventory.root_ids, kind)}
    return Inventory(
        run_id=inventory.dump_criu_run_id,
        own_namespaces=frozenset(own),
        closes_connections=inventory.tcp_close,
    )


def task_ids(images: Path, pid: Pid) -> Any:
    """The ids of what a task shares with others: descriptors, memory, namespaces (task_kobj_ids_entry)."""
    separate = images / f"ids-{pid}.img"
    if separate.is_file():
        return read_entry(separate, "IDS", "task_kobj_ids_entry")
    return read_entry(images / f"core-{pid}.img", "CORE", "core_entry").ids


def _id(ids: Any, kind: str) -> int:
    return int(getattr(ids, f"{kind}_ns_id"))
