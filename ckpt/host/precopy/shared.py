"""Shared memory without a file of its own, read through a descriptor of it.

Rules: holes are not filled, as a mapping of it would fill them when it is read. What is cut off meanwhile is left out.
Source: criu/shmem.c, do_dump_one_shmem(); lseek(2), SEEK_DATA; mm/shmem.c, shmem_file_read_iter().
"""

from __future__ import annotations

import errno
import os

import numpy as np

from ckpt.host.precopy.runs import Pages, Rows, Runs, no_runs, runs_of
from ckpt.units import PAGE_BYTES


def data_runs(fd: int) -> Runs:
    """The pages that are there, in memory or in swap, counted from its beginning.

    Raises:
        OSError: it cannot be asked.
    """
    size = os.fstat(fd).st_size
    found: list[tuple[int, int]] = []
    end = 0
    while end < size:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
            end = os.lseek(fd, start, os.SEEK_HOLE)
        except OSError as error:
            # Behind the last data, or behind an end that was moved meanwhile.
            if error.errno == errno.ENXIO:
                break
            raise
        found.append((start // PAGE_BYTES, -(-end // PAGE_BYTES) - start // PAGE_BYTES))
    return np.array(found, np.int64) if found else no_runs()


def read_shared(fd: int, pages: Pages, into: Rows) -> Pages:
    """Bring pages into the first rows, in their order; gives the places of those that were read.

    Raises:
        OSError: it cannot be read.
    """
    read = np.zeros(len(pages), np.bool_)
    place = 0
    for page, count in runs_of(pages).tolist():
        target = into[place : place + count].data.cast("B")
        got = os.preadv(fd, [target], page * PAGE_BYTES)
        whole = -(-got // PAGE_BYTES)
        # It may end within a page, whose rest is zeros.
        target[got : whole * PAGE_BYTES] = bytes(whole * PAGE_BYTES - got)
        read[place : place + whole] = True
        place += count
    return np.flatnonzero(read)
