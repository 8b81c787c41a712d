"""The memory of tasks that stand still, by /proc/PID/mem, which also shows what a task itself may not read.

Rule: the tasks are frozen, or stopped by CRIU, as long as this is read: it is what their images lack.
Source: proc_pid_mem(5).
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Final

from ckpt.errors import OsRefused
from ckpt.model.workload import Tree
from ckpt.units import Pid


class TaskMemory:
    """Fits ckpt.host.lazy.serving.PageSource."""

    def __init__(self) -> None:
        """Have the memory of nobody yet."""
        self._memory: Final[dict[tuple[Pid, Pid], int]] = {}

    def open(self, trees: Iterable[Tree]) -> None:
        """Have the memory of these trees, too; called by another thread, before anybody asks for it.

        Raises:
            OsRefused: the memory of a process cannot be opened.
        """
        for tree in trees:
            for process in tree.processes:
                path = f"/proc/{process.pid}/mem"
                try:
                    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                except ProcessLookupError:  # a zombie: it has no memory
                    continue
                except OSError as error:
                    raise OsRefused(
                        operation="read", subject=path, reason=error.strerror or str(error)
                    ) from error
                self._memory[tree.root, process.pid_inside] = fd

    def read(self, root: Pid, pid: Pid, address: int, into: memoryview) -> None:
        """Fill this with what the process has from this address on.

        Raises:
            OSError: it cannot be read.
            KeyError: nothing is known of the process.
        """
        memory = self._memory[root, pid]
        done = 0
        while done < len(into):
            count = os.preadv(memory, [into[done:]], address + done)
            if not count:
                raise OSError(0, "there is no more")
            done += count

    def close(self) -> None:
        """Let go of it; safe to repeat."""
        for fd in self._memory.values():
            os.close(fd)
        self._memory.clear()
