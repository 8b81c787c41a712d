"""A file in blocks: what two hosts compare, so that only what differs is sent.

Rules:
- The last block counts as if it were filled up with zeros, and a hole as zeros: so a file that grows, or gets other
  holes, has other digests only where its content is another.
- A file is read as it is now. If it is written to meanwhile, its digests are those of a mixture, and harm nobody: a
  pass under the freeze compares once more.
Source: sha256 and pread release the GIL, so two threads use both cores; lseek(2), SEEK_DATA.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, NamedTuple

from ckpt.units import Digest

BLOCK_BYTES: Final = 65536
PIECE_BLOCKS: Final = 64
PIECE_BYTES: Final = PIECE_BLOCKS * BLOCK_BYTES
"""As much of a file as is read, and sent, at once: 4 MiB."""

FILE_BYTES_MAX: Final = 16 << 40
OFFERED_BLOCKS_MAX: Final = 1 << 20
"""How many digests one answer holds: those of 64 GiB are 32 MiB. What is beyond is sent without being compared."""

DIGEST_BYTES: Final = 32
ZERO_DIGEST: Final = hashlib.sha256(bytes(BLOCK_BYTES)).digest()
_ZEROS: Final = memoryview(bytes(PIECE_BYTES))
_ZERO_PIECE: Final = ZERO_DIGEST * PIECE_BLOCKS
_THREADS: Final = 2
_AHEAD: Final = 4


class FileDigests(NamedTuple):
    """What a host has of a file: its size in bytes, and the digests of its first OFFERED_BLOCKS_MAX blocks."""

    size: int
    digests: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """At most PIECE_BLOCKS blocks of a file that follow each other, with their digests.

    `content` is valid until the next piece is asked for.
    """

    first_block: int
    content: memoryview
    digests: bytes


class BlockTable:
    """The digests of all blocks of one file; those of zeros take no memory."""

    def __init__(self) -> None:
        """A file of nothing but zeros."""
        self._pieces: dict[int, bytearray] = {}

    def get(self, first_block: int, count: int) -> bytes:
        """The digests of blocks that follow each other."""
        found = bytearray()
        while count:
            number, at = divmod(first_block, PIECE_BLOCKS)
            step = min(count, PIECE_BLOCKS - at)
            piece = self._pieces.get(number, _ZERO_PIECE)
            found += piece[at * DIGEST_BYTES : (at + step) * DIGEST_BYTES]
            first_block, count = first_block + step, count - step
        return bytes(found)

    def put(self, first_block: int, digests: bytes) -> None:
        """Note the digests of blocks that follow each other."""
        start = 0
        while start < len(digests):
            number, at = divmod(first_block, PIECE_BLOCKS)
            step = min(len(digests) - start, (PIECE_BLOCKS - at) * DIGEST_BYTES)
            new = digests[start : start + step]
            piece = self._pieces.get(number)
            if piece is None and new != _ZERO_PIECE[:step]:
                piece = self._pieces[number] = bytearray(_ZERO_PIECE)
            if piece is not None:
                piece[at * DIGEST_BYTES : at * DIGEST_BYTES + step] = new
            first_block, start = first_block + step // DIGEST_BYTES, start + step

    def cut(self, blocks: int) -> None:
        """Let all blocks from this number on be zeros."""
        number, at = divmod(blocks, PIECE_BLOCKS)
        for each in [each for each in self._pieces if each > number or (each == number and not at)]:
            del self._pieces[each]
        if number in self._pieces:
            self._pieces[number][at * DIGEST_BYTES :] = _ZERO_PIECE[at * DIGEST_BYTES :]

    def root(self, size: int) -> Digest:
        """The digest over the size and the digests of all blocks of a file that is so long."""
        sha256 = hashlib.sha256(b"ckpt shipped 1\0" + size.to_bytes(8, "big"))
        blocks = blocks_of(size)
        for first in range(0, blocks, PIECE_BLOCKS):
            sha256.update(self.get(first, min(PIECE_BLOCKS, blocks - first)))
        return Digest(sha256.hexdigest())


def blocks_of(size: int) -> int:
    """How many blocks a file of this size has."""
    return -(-size // BLOCK_BYTES)


def block_digests(content: memoryview) -> bytes:
    """The digests of the blocks that the content fills, the last one with zeros."""
    found = bytearray()
    for at in range(0, len(content), BLOCK_BYTES):
        block = content[at : at + BLOCK_BYTES]
        sha256 = hashlib.sha256(block)
        if len(block) < BLOCK_BYTES:
            sha256.update(_ZEROS[: BLOCK_BYTES - len(block)])
        found += sha256.digest()
    return bytes(found)


def table_of(fd: int) -> BlockTable:
    """The digests of all blocks of an open file.

    Raises:
        OSError: it cannot be read.
    """
    table = BlockTable()
    for piece in pieces_of(fd, os.fstat(fd).st_size):
        table.put(piece.first_block, piece.digests)
    return table


def pieces_of(fd: int, size: int) -> Iterator[Piece]:
    """All pieces of an open file, in order, as if it were `size` bytes long: what is missing are zeros.

    Raises:
        OSError: it cannot be read.
    """
    if size <= PIECE_BYTES:
        if size:
            yield _read(fd, 0, size, bytearray(size))
        return
    buffers = [bytearray(PIECE_BYTES) for _ in range(_AHEAD)]
    with ThreadPoolExecutor(max_workers=_THREADS) as pool:
        waiting: deque[tuple[bytearray, Future[Piece]]] = deque()
        for start, is_hole in _places(fd, size):
            length = min(PIECE_BYTES, size - start)
            if is_hole:
                yield from _finished(waiting, buffers)
                yield _zeros(start, length)
                continue
            if not buffers:
                buffer, future = waiting.popleft()
                yield future.result()
                buffers.append(buffer)
            buffer = buffers.pop()
            waiting.append((buffer, pool.submit(_read, fd, start, length, buffer)))
        yield from _finished(waiting, buffers)


def _finished(waiting: deque[tuple[bytearray, Future[Piece]]], buffers: list[bytearray]) -> Iterator[Piece]:
    while waiting:
        buffer, future = waiting.popleft()
        yield future.result()
        buffers.append(buffer)


def _places(fd: int, size: int) -> Iterator[tuple[int, bool]]:
    """Where pieces begin, and whether each is a hole from end to end."""
    data = 0
    for start in range(0, size, PIECE_BYTES):
        if data <= start:
            data = _next_data(fd, start, size)
        yield start, data >= min(start + PIECE_BYTES, size)


def _next_data(fd: int, start: int, size: int) -> int:
    try:
        return os.lseek(fd, start, os.SEEK_DATA)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return size
        raise


def _zeros(start: int, length: int) -> Piece:
    digests = _ZERO_PIECE[: blocks_of(length) * DIGEST_BYTES]
    return Piece(first_block=start // BLOCK_BYTES, content=_ZEROS[:length], digests=digests)


def _read(fd: int, start: int, length: int, buffer: bytearray) -> Piece:
    content = memoryview(buffer)[:length]
    at = 0
    while at < length:
        count = os.preadv(fd, [content[at:]], start + at)
        if count == 0:  # it became shorter meanwhile
            content[at:] = _ZEROS[: length - at]
            break
        at += count
    return Piece(first_block=start // BLOCK_BYTES, content=content, digests=block_digests(content))
