"""A new file with holes, of bytes that are nobody else's business.

Rules: it is written beside its place and renamed when it is whole; only its owner may read it. What is no regular file
is never replaced.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from ckpt.errors import OsRefused


class SparseFile:
    """A file that is written at any place; what is never written is a hole."""

    def __init__(self, fd: int, path: str) -> None:
        self._fd = fd
        self._path = path

    def write(self, offset: int, content: bytes) -> None:
        """Write all of it.

        Raises:
            OsRefused: it cannot be written.
        """
        view = memoryview(content)
        try:
            while view:
                written = os.pwrite(self._fd, view, offset)
                view, offset = view[written:], offset + written
        except OSError as error:
            raise _refused(self._path, error) from error


@contextmanager
def sparse_file(path: str, size_bytes: int) -> Iterator[SparseFile]:
    """A new file of this size in place of what is there; if the body fails, that stays.

    Raises:
        OsRefused: it cannot be written.
    """
    if os.path.lexists(path) and not os.path.isfile(path):
        raise OsRefused(operation="write", subject=path, reason="not a regular file")
    temporary = f"{path}.{os.getpid()}.partial"
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _refused(path, error) from error
    try:
        try:
            os.ftruncate(fd, size_bytes)
        except OSError as error:
            raise _refused(path, error) from error
        except OverflowError:
            # What images claim may be larger than any file.
            raise OsRefused(
                operation="write", subject=path, reason=f"no file can have {size_bytes} bytes"
            ) from None
        yield SparseFile(fd, path)
        try:
            os.fsync(fd)
            os.rename(temporary, path)
        except OSError as error:
            raise _refused(path, error) from error
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
    finally:
        os.close(fd)


def _refused(path: str, error: OSError) -> OsRefused:
    return OsRefused(operation="write", subject=path, reason=error.strerror or str(error))
