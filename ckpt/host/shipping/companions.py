"""The files that a SQLite database has beside it: without them it is another database.

Rule: a journal or log that is there holds what the database lacks; one that is not there must not be found later, or
it is applied to a database that it does not belong to.
Source: sqlite.org/fileformat2.html, "The Database Header"; sqlite.org/howtocorrupt.html, sections 1.3 and 1.4.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Final

_MAGIC: Final = b"SQLite format 3\0"
_SUFFIXES: Final = ("-journal", "-wal", "-shm")


def companions_of(path: str) -> tuple[str, ...]:
    """The paths at which a database has its other files, whether they are there or not; none for any other file."""
    with suppress(OSError):
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOATIME | os.O_CLOEXEC)
        try:
            # A new database in WAL mode is empty until its first checkpoint; its log is open beside it.
            if os.pread(fd, len(_MAGIC), 0) == _MAGIC or os.path.lexists(f"{path}-wal"):
                return tuple(path + suffix for suffix in _SUFFIXES)
        finally:
            os.close(fd)
    return ()
