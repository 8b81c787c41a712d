"""A stored file written to disk again.

Rules: F35 of images/FORMAT.md. Every chunk is verified before its bytes are written; zeros become holes.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress

from ckpt.errors import CkptError, OsRefused
from ckpt.model.checkpoint import Chunk, StoredFile
from ckpt.store.objects import Objects
from ckpt.store.parallel import each
from ckpt.store.refused import FULL, no_space

# A restore runs as root on bytes from elsewhere: whoever needs set-uid bits must set them himself.
_MODE_BITS = 0o777


def fetch(objects: Objects, file: StoredFile, path: str) -> None:
    """Write the file to `path`, replacing what is there; nothing remains of it if that fails.

    Raises:
        ObjectMissing: a chunk is not there.
        ObjectCorrupt: a chunk is damaged.
        NoSpace: the target's file system is full.
        OsRefused: the target cannot be written.
    """
    try:
        fd = _open_target(path)
        try:
            _write(objects, file, fd)
            os.fchmod(fd, file.mode & _MODE_BITS)
        except BaseException:
            with suppress(OSError):
                os.unlink(path)
            raise
        finally:
            os.close(fd)
    except OSError as error:
        raise _refusal(file, path, error) from error


def _open_target(path: str) -> int:
    """A regular file to write to. What else is there is neither written nor, later, removed."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
    if stat.S_ISREG(os.fstat(fd).st_mode):
        return fd
    os.close(fd)
    raise OSError(errno.EINVAL, "not a regular file", path)


def _write(objects: Objects, file: StoredFile, fd: int) -> None:
    os.ftruncate(fd, 0)  # what was there must not show through the holes
    os.ftruncate(fd, file.size_bytes)

    def write(place: tuple[int, Chunk]) -> None:
        offset, chunk = place
        plain = objects.read_chunk(chunk)
        if plain != bytes(len(plain)):
            _pwrite(fd, plain, offset)

    places = zip(_offsets(file), file.chunks, strict=True)
    if len(file.chunks) > 1:
        for _ in each(places, write):
            pass
    else:  # most image files are small: a pool of threads would take longer than they do
        for place in places:
            write(place)


def _offsets(file: StoredFile) -> list[int]:
    offset, offsets = 0, []
    for chunk in file.chunks:
        offsets.append(offset)
        offset += chunk.size_bytes
    return offsets


def _pwrite(fd: int, plain: bytes, offset: int) -> None:
    rest = memoryview(plain)
    while rest:
        written = os.pwrite(fd, rest, offset)
        rest, offset = rest[written:], offset + written


def _refusal(file: StoredFile, path: str, error: OSError) -> CkptError:
    if error.errno in FULL:
        return no_space(os.path.dirname(path) or ".", file.size_bytes)
    return OsRefused(operation="write", subject=path, reason=error.strerror or str(error))
