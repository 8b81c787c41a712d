"""What was sent, on disk, so that it can be compared with what is there now.

Rules:
- The file has no name: nothing of a workload's memory is left behind, whatever happens.
- It is written by system calls and read through a mapping: a full disk is an error then, and no signal.
- Its memory is the page cache: the kernel takes it back when it needs it.
"""

from __future__ import annotations

import errno
import mmap
import os
from typing import Final

import numpy as np

from ckpt.errors import NoSpace, OsRefused
from ckpt.host.precopy.runs import WORDS, Pages, Rows, runs_of
from ckpt.units import PAGE_BYTES

_NAME: Final = "pages"
_FIRST_PAGES: Final = 16_384


class Spool:
    """Pages at places, which are numbers from 0 on."""

    def __init__(self, directory: str) -> None:
        """Begin an empty one in this directory.

        Raises:
            OsRefused: it cannot be made.
        """
        self._directory = directory
        path = os.path.join(directory, _NAME)
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            os.unlink(path)
        except OSError as error:
            raise self._refused("make", error) from error
        self._used = 0
        self._rows: Rows = np.empty((0, WORDS), np.uint64)

    def rows(self, places: Pages) -> Rows:
        """What is at these places; no copy where they follow one another."""
        first = int(places[0])
        if np.array_equal(places, np.arange(first, first + len(places))):
            return self._rows[first : first + len(places)]
        return self._rows[places]

    def append(self, rows: Rows) -> Pages:
        """Add pages; gives their places.

        Raises:
            NoSpace, OsRefused: they cannot be written.
        """
        places = np.arange(self._used, self._used + len(rows))
        if self._used + len(rows) > len(self._rows):
            self._grow(self._used + len(rows))
        self._write(self._used, rows)
        self._used += len(rows)
        return places

    def replace(self, places: Pages, rows: Rows) -> None:
        """Write other pages to these places.

        Raises:
            NoSpace, OsRefused: they cannot be written.
        """
        begin = 0
        for place, count in runs_of(places).tolist():
            self._write(place, rows[begin : begin + count])
            begin += count

    def close(self) -> None:
        """Give up what is in it; safe to repeat."""
        # What is mapped goes with the last array that shows it.
        self._rows = np.empty((0, WORDS), np.uint64)
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _grow(self, pages: int) -> None:
        size = max(_FIRST_PAGES, 2 * len(self._rows), pages)
        try:
            os.ftruncate(self._fd, size * PAGE_BYTES)
            mapped = mmap.mmap(self._fd, size * PAGE_BYTES, prot=mmap.PROT_READ)
        except OSError as error:
            raise self._refused("grow", error) from error
        self._rows = np.frombuffer(mapped, np.uint64).reshape(-1, WORDS)

    def _write(self, place: int, rows: Rows) -> None:
        content = rows.data.cast("B")
        offset = place * PAGE_BYTES
        try:
            while content:
                written = os.pwrite(self._fd, content, offset)
                content, offset = content[written:], offset + written
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                space = os.fstatvfs(self._fd)
                raise NoSpace(
                    place=self._directory,
                    available_bytes=space.f_bavail * space.f_frsize,
                    needed_bytes=len(content),
                    option="CKPT_STATE",
                ) from error
            raise self._refused("write", error) from error

    def _refused(self, operation: str, error: OSError) -> OsRefused:
        return OsRefused(
            operation=operation,
            subject=f"the pages that were sent, in {self._directory}",
            reason=error.strerror or str(error),
        )
