"""The open descriptors of a workload, by what they lead to: looked through once for all rules.

Source: proc_pid_fd(5); criu/files.c, dump_one_file(), which tells them apart in the same way.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from ckpt.host.inspection.holdings import Hold
from ckpt.host.inspection.processes import ProcessFacts
from ckpt.host.preflight.facts import Facts
from ckpt.model.inodes import RoleKind

Held = tuple[ProcessFacts, Hold]

MEMORY_DEVICES: Final = 1
DMA_BUFFER: Final = "/dmabuf:"
"""How the link of a DMA-BUF begins: it has no place in a file system."""
_IN_MEMORY: Final = (
    "/memfd:",
    "/dev/zero (deleted)",
    "/SYSV",
    "/anon_hugepage",
    "/[aio]",
    "/secretmem",
    DMA_BUFFER,
)
_NAMESPACE_LINKS: Final = frozenset(("cgroup", "pid", "user", "ipc", "uts", "mnt", "net", "time"))


@dataclass(slots=True)
class Descriptors:
    """Each descriptor stands in one list, but those that are none of these.

    `files` are regular files and directories that have a place in a file system; `sockets` and `pipes` only those that
    were opened by a path.
    """

    anonymous: list[Held] = field(default_factory=list)
    pidfds: list[Held] = field(default_factory=list)
    namespaces: list[Held] = field(default_factory=list)
    characters: list[Held] = field(default_factory=list)
    blocks: list[Held] = field(default_factory=list)
    files: list[Held] = field(default_factory=list)
    memory: list[Held] = field(default_factory=list)
    sockets: list[Held] = field(default_factory=list)
    pipes: list[Held] = field(default_factory=list)


def descriptors(facts: Facts) -> Descriptors:
    """All of them; ask for it by `facts.once(descriptors)`."""
    found = Descriptors()
    for task in facts.tasks:
        for hold in facts.descriptors(task):
            chosen = _list_for(found, hold)
            if chosen is not None:
                chosen.append((task, hold))
    return found


def is_in_memory(hold: Hold) -> bool:
    """Whether it is memory that only looks like a file."""
    return hold.target.startswith(_IN_MEMORY)


def is_pidfd(hold: Hold) -> bool:
    """Whether it refers to a process."""
    return hold.target in {"anon_inode:[pidfd]", "pidfd"} or hold.target.startswith("pidfd:")


def mapped(facts: Facts) -> Iterator[Held]:
    """One area of every file that a process maps."""
    for task in facts.tasks:
        for hold in facts.holdings(task).holds:
            if hold.kind is RoleKind.MAP:
                yield task, hold


def is_memory_device(hold: Hold) -> bool:
    """Whether it is /dev/null and its like, which CRIU opens by their paths."""
    return stat.S_ISCHR(hold.status.st_mode) and os.major(hold.status.st_rdev) == MEMORY_DEVICES


def _list_for(found: Descriptors, hold: Hold) -> list[Held] | None:
    kind = stat.S_IFMT(hold.status.st_mode)
    has_path = hold.is_file
    if is_pidfd(hold):
        return found.pidfds
    if hold.target.startswith(("anon_inode:", DMA_BUFFER)):
        return found.anonymous
    if kind == stat.S_IFCHR:
        return found.characters
    if kind == stat.S_IFBLK:
        return found.blocks
    if kind == stat.S_IFSOCK:
        return found.sockets if has_path else None
    if kind == stat.S_IFIFO:
        return found.pipes if has_path else None
    if has_path:
        return found.memory if is_in_memory(hold) else found.files
    return found.namespaces if hold.target.partition(":")[0] in _NAMESPACE_LINKS else None
