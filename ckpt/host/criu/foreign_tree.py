"""The processes of an image set, as far as its images tell of them.

Source: images/core.proto, images/creds.proto, images/mm.proto; criu/include/pid.h (TASK_ALIVE …).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from ckpt.errors import ObjectCorrupt, OsRefused
from ckpt.host.criu.addresses import page_addresses
from ckpt.host.criu.imagefile import read_entries, read_entry
from ckpt.host.criu.pstree import ImageTask, read_inventory
from ckpt.model.checkpoint import AddressRun
from ckpt.model.clocks import TimeOffsets
from ckpt.model.workload import Namespace, Process, Tree
from ckpt.units import PAGE_BYTES, Pid

_NAMESPACES: Final = ("cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts")
_STATES: Final = {1: "S", 2: "Z", 3: "T", 6: "Z"}
_ARGUMENT_BYTES_MAX: Final = 1 << 17


def read_tree(images: Path, tasks: tuple[ImageTask, ...], root: Pid) -> Tree:
    """The tree of these tasks; its first process gets the number `root`, whatever it is in the images.

    Raises:
        ObjectCorrupt, OsRefused: an image cannot be read.
    """
    own = read_inventory(images).own_namespaces
    memory = _Memory(images)
    outside = {tasks[0].pid: root}
    return Tree(
        root=root,
        processes=tuple(_process(images, task, outside, memory) for task in tasks),
        namespaces=tuple(Namespace(kind=kind, inode=0, own=kind in own) for kind in _NAMESPACES),
        time_offsets=TimeOffsets(),
    )


def _process(images: Path, task: ImageTask, outside: dict[Pid, Pid], memory: _Memory) -> Process:
    name = f"core-{task.pid}.img"
    cores = read_entries(images / name, "CORE", "core_entry")
    if not cores:
        raise ObjectCorrupt(kind="image file", name=name, reason="it has no entry")
    core = cores[0]
    thread, creds = core.thread_core, core.thread_core.creds
    pid = outside.get(task.pid, task.pid)
    return Process(
        pid=pid,
        pid_inside=task.pid,
        parent=outside.get(task.parent, task.parent),
        name=core.tc.comm,
        state=_STATES.get(core.tc.task_state, "S"),
        threads=(pid, *(thread for thread in task.threads if thread != task.pid)),
        command_line=memory.command_line(task.pid),
        uid=creds.uid,
        gid=creds.gid,
        capabilities=sum(word << (32 * place) for place, word in enumerate(creds.cap_eff[:2])),
        seccomp=thread.seccomp_mode or core.tc.old_seccomp_mode,
        cgroup="",
    )


class _Memory:
    """The memory of the processes, as the pages files have it."""

    def __init__(self, images: Path) -> None:
        self._images = images
        self._files: dict[str, tuple[str, tuple[AddressRun, ...]]] = {
            runs[0].space: (name, runs) for name, runs in page_addresses(images).items() if runs
        }

    def command_line(self, pid: Pid) -> tuple[str, ...]:
        """The words that the process was started with; none where its memory does not tell."""
        path = self._images / f"mm-{pid}.img"
        if not path.is_file():
            return ()
        mm = read_entry(path, "MM", "mm_entry")
        size = mm.mm_arg_end - mm.mm_arg_start
        if not 0 < size <= _ARGUMENT_BYTES_MAX:
            return ()
        content = self._read(f"pagemap-{pid}", mm.mm_arg_start, size)
        return (
            tuple(os.fsdecode(word) for word in content.removesuffix(b"\0").split(b"\0")) if content else ()
        )

    def _read(self, space: str, address: int, size: int) -> bytes:
        """The memory there; nothing if a page of it is missing."""
        name, runs = self._files.get(space, ("", ()))
        first, last = address // PAGE_BYTES, (address + size - 1) // PAGE_BYTES
        places: dict[int, int] = {}
        for run in runs:
            for page in range(max(first, run.page), min(last + 1, run.page + run.count)):
                places[page] = run.chunk + page - run.page
        if len(places) != last + 1 - first:
            return b""
        path = self._images / name
        try:
            with path.open("rb") as file:
                content = b"".join(
                    os.pread(file.fileno(), PAGE_BYTES, places[page] * PAGE_BYTES)
                    for page in range(first, last + 1)
                )
        except OSError as error:
            raise OsRefused(
                operation="read", subject=str(path), reason=error.strerror or str(error)
            ) from error
        start = address - first * PAGE_BYTES
        return content[start : start + size]
