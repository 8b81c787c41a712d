"""What has been written and must be on disk before the target says that it has it.

Rules: fsync(2) on a file says nothing of its name: the directory is written out too. What is written out in a thread
may be written to meanwhile: it is then noted again, and written out again at the end.
Source: fsync(2).
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Final

from ckpt.errors import CkptError, NoSpace, OsRefused

# Those that wait for the journal at the same time share one commit of it.
_AT_ONCE: Final = 8


class Unwritten:
    """Files and directories that the disk may not have yet. One thread calls it."""

    def __init__(self) -> None:
        self._paths: set[str] = set()
        self._thread: threading.Thread | None = None
        self._failed: CkptError | None = None

    def add(self, *paths: str) -> None:
        """Note that something was written to these."""
        self._paths.update(paths)

    def begin(self) -> None:
        """Write out in a thread what is noted; while an earlier one is at it, nothing: it waits for the next call."""
        if self._thread is not None and self._thread.is_alive():
            return
        self._join()
        paths, self._paths = self._paths, set()
        self._thread = threading.Thread(target=self._write_out, args=(paths,), name="write out", daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """Return when all that was noted is on disk.

        Raises:
            OsRefused, NoSpace: it cannot be written, or could not in the meantime.
        """
        self._join()
        paths, self._paths = self._paths, set()
        try:
            if self._failed is not None:
                raise self._failed
            _write_out(paths)
        except CkptError:
            self._paths |= paths
            raise

    def wait(self) -> None:
        """Wait for the thread: it would be cut off, with a traceback, at the end of the process."""
        self._join()

    def forget(self) -> None:
        """Wait for the thread; whatever is noted is about to be removed."""
        self._join()
        self._paths.clear()

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _write_out(self, paths: Iterable[str]) -> None:
        try:
            _write_out(paths)
        except CkptError as error:
            # The kernel tells of a page that it could not write only once: it is never forgotten.
            self._failed = error


@contextmanager
def writing(place: str, needed_bytes: int = 0) -> Iterator[None]:
    """Turn an OSError of the body, which writes below `place`, into NoSpace or OsRefused."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            space = os.statvfs(place)
            raise NoSpace(
                place=place,
                available_bytes=space.f_bavail * space.f_frsize,
                needed_bytes=needed_bytes,
                option="CKPT_STATE",
            ) from error
        raise OsRefused(
            operation="write", subject=str(error.filename or place), reason=error.strerror or str(error)
        ) from error


def _write_out(paths: Iterable[str]) -> None:
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for _ in pool.map(_fsync, paths):
            pass


def _fsync(path: str) -> None:
    # What is gone was sent anew, and is noted again.
    with writing(os.path.dirname(path)), suppress(FileNotFoundError):
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
