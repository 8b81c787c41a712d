"""A stored file written to disk again.

Rules: F35 of images/FORMAT.md. Every piece is verified before its bytes are written; zeros become holes.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

from ckpt.errors import CkptError, OsRefused
from ckpt.model.checkpoint import StoredFile
from ckpt.model.progress import Progress
from ckpt.store.contents import PIECE_CHUNKS, Contents, Piece
from ckpt.store.memory import keep_freed_memory
from ckpt.store.parallel import each
from ckpt.store.refused import FULL, no_space
from ckpt.units import CHUNK_BYTES

# A restore runs as root on bytes from elsewhere: whoever needs set-uid bits must set them himself.
_MODE_BITS: Final = 0o777

_SMALL_BYTES: Final = PIECE_CHUNKS * CHUNK_BYTES
_LOOK_BYTES: Final = 64
_ZEROS: Final = bytes(CHUNK_BYTES)


def fetch(contents: Contents, file: StoredFile, path: str, progress: Progress) -> None:
    """Write the file to `path`, replacing what is there; nothing remains of it if that fails.

    Raises:
        ObjectMissing: something that it needs is not there.
        ObjectCorrupt: damaged.
        NoSpace: the target's file system is full.
        OsRefused: the target cannot be written.
    """
    # What is known of the file is compared with its root before anything is made of its size.
    pieces = contents.pieces(file)
    try:
        fd = _open_target(path)
        try:
            _write(contents, file, pieces, fd, progress)
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


def _write(
    contents: Contents, file: StoredFile, pieces: Iterator[Piece], fd: int, progress: Progress
) -> None:
    os.ftruncate(fd, 0)  # what was there must not show through the holes
    os.ftruncate(fd, file.size_bytes)

    def write(piece: Piece) -> int:
        plain = contents.read(file, piece)
        for start, end in _without_zeros(plain):
            _pwrite(fd, memoryview(plain)[start:end], piece.offset + start)
        return piece.size_bytes

    if file.size_bytes > _SMALL_BYTES:
        keep_freed_memory()
        for size_bytes in each(pieces, write):
            progress.moved(size_bytes)
    else:  # most image files are small: a pool of threads would take longer than they do
        for piece in pieces:
            progress.moved(write(piece))


def _without_zeros(plain: bytes | bytearray) -> Iterator[tuple[int, int]]:
    """Where the plain bytes are not zeros, in whole chunks."""
    begin = None
    for at in range(0, len(plain), CHUNK_BYTES):
        # Most chunks show by their first bytes that they are not zeros: only then the rest is looked at.
        if plain[at : at + _LOOK_BYTES] == _ZEROS[:_LOOK_BYTES] and _is_zeros(plain[at : at + CHUNK_BYTES]):
            if begin is not None:
                yield begin, at
                begin = None
        elif begin is None:
            begin = at
    if begin is not None:
        yield begin, len(plain)


def _is_zeros(chunk: bytes | bytearray) -> bool:
    return chunk == _ZEROS[: len(chunk)]


def _pwrite(fd: int, rest: memoryview, offset: int) -> None:
    while rest:
        written = os.pwrite(fd, rest, offset)
        rest, offset = rest[written:], offset + written


def _refusal(file: StoredFile, path: str, error: OSError) -> CkptError:
    if error.errno in FULL:
        return no_space(os.path.dirname(path) or ".", file.size_bytes)
    return OsRefused(operation="write", subject=path, reason=error.strerror or str(error))
