"""A process whose memory is read while it runs.

Rules:
- Everything is opened below one descriptor of /proc/PID, which is this process's for ever. Its pid can become
  another's: what was read by pid counts only if the process still was there afterwards.
- Nothing that it does meanwhile is an error; that it has ended is an OSError, which ends the reading of it.
Source: proc(5), proc_pid_mem(5), proc_pid_map_files(5); mm/memory.c, access_remote_vm(); mm/process_vm_access.c.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from types import TracebackType
from typing import Final, Self

import numpy as np

from ckpt.host.precopy.areas import SharedMapping, number_of, private_areas, shared_mappings
from ckpt.host.precopy.calls import read_memory
from ckpt.host.precopy.present import PresentRuns
from ckpt.host.precopy.runs import Pages, Rows, Runs, no_runs, runs_of
from ckpt.host.virtual.mappings import mappings_of
from ckpt.units import PAGE_BYTES, Pid

_MEMFD: Final = "/memfd:"


class Task:
    """One process; a context manager that holds it open."""

    def __init__(self, pid: Pid) -> None:
        """Open it.

        Raises:
            OSError: it has ended.
        """
        self._pid = pid
        self._place = os.open(f"/proc/{pid}", os.O_DIRECTORY | os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._mappings = mappings_of(pid)
            self._check()
        except BaseException:
            os.close(self._place)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._place)

    def present(self, ask: PresentRuns) -> tuple[Runs, Runs]:
        """The pages of its private memory that are there: those that it may read itself, and the others.

        Raises:
            OSError: it has ended.
        """
        found: dict[bool, list[Runs]] = {True: [no_runs()], False: [no_runs()]}
        pagemap = self.open("pagemap")
        try:
            for area in private_areas(self._mappings):
                if area.whole:
                    first, end = area.start // PAGE_BYTES, area.end // PAGE_BYTES
                    found[area.readable].append(np.array([[first, end - first]], np.int64))
                else:
                    found[area.readable].append(ask(pagemap, area.start, area.end))
        finally:
            os.close(pagemap)
        return np.concatenate(found[True]), np.concatenate(found[False])

    def shared(self, device: int) -> Iterator[SharedMapping]:
        """The shared memory that it maps or holds open; `device` is the kernel's own tmpfs.

        Raises:
            OSError: it has ended.
        """
        yield from shared_mappings(self._mappings, device)
        for name in self._names("fd"):
            with suppress(FileNotFoundError):
                link = f"fd/{name}"
                if os.readlink(link, dir_fd=self._place).startswith(_MEMFD):
                    status = os.stat(link, dir_fd=self._place)
                    if status.st_dev == device:
                        yield SharedMapping(shared=number_of(status), link=link)

    def open(self, link: str) -> int:
        """A descriptor for reading of what the name in /proc/PID leads to.

        Raises:
            OSError: it leads nowhere any more.
        """
        return os.open(link, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=self._place)

    def read(self, pages: Pages, into: Rows) -> Pages:
        """Bring pages that it may read itself into the first rows; gives the places of those that were read.

        Raises:
            OSError: it has ended.
        """
        read = read_memory(self._pid, pages, into)
        self._check()
        return read

    def read_by_force(self, pages: Pages, into: Rows) -> Pages:
        """The same, slower, of pages that the process may not read itself.

        Raises:
            OSError: it has ended.
        """
        read = np.zeros(len(pages), np.bool_)
        memory = self.open("mem")
        try:
            place = 0
            for page, count in runs_of(pages).tolist():
                with suppress(OSError):
                    got = os.preadv(memory, [into[place : place + count].data.cast("B")], page * PAGE_BYTES)
                    read[place : place + got // PAGE_BYTES] = True
                place += count
        finally:
            os.close(memory)
        return np.flatnonzero(read)

    def _names(self, folder: str) -> list[str]:
        fd = self.open(folder)
        try:
            return os.listdir(fd)
        finally:
            os.close(fd)

    def _check(self) -> None:
        os.stat("stat", dir_fd=self._place)
