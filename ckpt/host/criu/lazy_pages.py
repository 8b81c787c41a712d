"""What a lazy restore says, and to whom: CRIU hands a userfaultfd of each task to who listens in its work directory.

    SOCKET      in the work directory; CRIU connects to it before it makes the tasks
    pid         an int for each task, as the images call it; negated for a zombie, which has no memory
    a byte      after each pid that is not negated, and with it the userfaultfd; the events of forks, moves, and of
                memory that is given back or unmapped come on it, too
    FINISHED    an int: all tasks are about to run

Source: criu/uffd.c (send_uffd, lazy_pages_setup_zombie, lazy_pages_finish_restore).
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from ckpt.host.criu.addresses import lazy_pages, page_map
from ckpt.model.pages import PageRun
from ckpt.units import PAGE_BYTES, Pid

SOCKET: Final = "lazy-pages.socket"

_WORD: Final = struct.Struct("=i")
_FINISHED: Final = 0x52535446


class TaskFaults(NamedTuple):
    """A task's userfaultfd, which belongs to who gets it; `pid` is the task's as the images call it."""

    pid: Pid
    fd: int


def heard_from(restore: socket.socket) -> Iterator[TaskFaults | None]:
    """What CRIU says, to its end; None is that all tasks are about to run.

    Raises:
        OSError: it broke off in the middle, or says what it must not.
    """
    while len(word := restore.recv(_WORD.size, socket.MSG_WAITALL)) == _WORD.size:
        number = _WORD.unpack(word)[0]
        if number == _FINISHED:
            yield None
        elif number > 0:
            _, fds, _, _ = socket.recv_fds(restore, 1, 1)
            if not fds:
                raise ConnectionError("no userfaultfd came")
            os.set_inheritable(fds[0], False)
            yield TaskFaults(Pid(number), fds[0])


def lazy_runs(images: Path, pid: Pid) -> list[PageRun]:
    """The pages of a process that an image set has left at their source.

    Raises:
        ObjectCorrupt, OsRefused: its page map cannot be read.
    """
    _, entries = page_map(images / f"pagemap-{pid}.img")
    return [PageRun(entry.vaddr // PAGE_BYTES, count) for entry in entries if (count := lazy_pages(entry))]
