"""The memory of a tree's running processes, space by space, as CRIU would name and choose it.

Rule: a process that ends while it is read, and memory that goes away, are left out; that is no error.
Source: criu/mem.c, criu/memfd.c, criu/ipc_ns.c: what is in which page map; kcmp(2).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Final

import numpy as np

from ckpt.errors import OsRefused
from ckpt.host.precopy.areas import SharedMapping, number_of, shared_device
from ckpt.host.precopy.present import best_way
from ckpt.host.precopy.runs import BATCH_PAGES, WORDS, Pages, Rows, Runs, batches
from ckpt.host.precopy.shared import data_runs, read_shared
from ckpt.host.precopy.tasks import Task
from ckpt.host.preflight.kernel_objects import Shared, groups
from ckpt.model.workload import Process, Tree

Contents = Iterator[tuple[Pages, Rows]]
"""Pages with what is in them; each is given once, and the rows are void when the next ones are asked for."""

_PRIVATE: Final = "pagemap-{}"
_SHARED: Final = "pagemap-shmem-{}"


class MemoryReader:
    """Reads what is there now, by whatever this kernel offers."""

    def __init__(self) -> None:
        """Ask the kernel what it offers.

        Raises:
            OsRefused: it does not say.
        """
        try:
            self._ask = best_way()
            self._device = shared_device()
        except OSError as error:
            raise OsRefused(
                operation="ask", subject="the kernel for pages of memory", reason=error.strerror or str(error)
            ) from error
        self._scratch: Rows = np.empty((BATCH_PAGES, WORDS), np.uint64)
        self._every = 1

    def spaces(self, tree: Tree, *, every: int = 1) -> Iterator[tuple[str, Contents]]:
        """The name of each page map, and what CRIU would put there now; to be taken before the next is asked for.

        With `every` only one of so many pages is read.
        """
        self._every = every
        seen: set[int] = set()
        for process in _memories(tree):
            with suppress(OSError), Task(process.pid) as task:
                yield _PRIVATE.format(process.pid_inside), self._private(task)
                for mapping in task.shared(self._device):
                    if mapping.shared not in seen:
                        seen.add(mapping.shared)
                        yield _SHARED.format(mapping.shared), self._shared(task, mapping)

    def _private(self, task: Task) -> Contents:
        with suppress(OSError):
            readable, others = task.present(self._ask)
            yield from self._read(readable, task.read)
            yield from self._read(others, task.read_by_force)

    def _shared(self, task: Task, mapping: SharedMapping) -> Contents:
        with suppress(OSError):
            fd = task.open(mapping.link)
            try:
                status = os.fstat(fd)
                # Something else may have been put there meanwhile.
                if status.st_dev == self._device and number_of(status) == mapping.shared:
                    yield from self._read(data_runs(fd), lambda pages, into: read_shared(fd, pages, into))
            finally:
                os.close(fd)

    def _read(self, runs: Runs, read: Callable[[Pages, Rows], Pages]) -> Contents:
        for pages in batches(runs) if self._every == 1 else _sampled(runs, self._every):
            rows = self._scratch[: len(pages)]
            got = read(pages, rows)
            if len(got) == len(pages):
                yield pages, rows
            elif len(got):
                yield pages[got], rows[got]


def _sampled(runs: Runs, every: int) -> Iterator[Pages]:
    """One page of every so many, as many at once as batches() gives."""
    taken: list[Pages] = []
    for pages in batches(runs):
        taken.append(pages[::every])
        if len(taken) == every:
            yield np.concatenate(taken)
            taken.clear()
    if taken:
        yield np.concatenate(taken)


def _memories(tree: Tree) -> Iterator[Process]:
    """The processes, of those that share their memory the first: a child of vfork(2) is not read once more."""
    shared = groups((process.pid for process in tree.processes), Shared.MEMORY)
    group_of = {pid: number for number, group in enumerate(shared) for pid in group}
    seen: set[int] = set()
    for process in tree.processes:
        if group_of[process.pid] not in seen:
            seen.add(group_of[process.pid])
            yield process
