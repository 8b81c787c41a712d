"""Checkpoints of version 1: each chunk is an object of its own.

Rules: F100 to F103 of images/FORMAT.md. They are read, verified and swept; none is written any more.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Final

from ckpt.codec.frame import HEADER_BYTES, Kind
from ckpt.codec.limits import BODY_SLACK_BYTES
from ckpt.codec.objects import chunk_digests, digest_of
from ckpt.codec.v1 import Chunk, ChunkedCheckpoint, ChunkedFile
from ckpt.errors import ObjectCorrupt, ObjectMissing
from ckpt.model.checkpoint import StoredFile
from ckpt.store import layout
from ckpt.store.backend import Backend
from ckpt.store.compress import from_object
from ckpt.store.contents import Piece
from ckpt.store.packs import LOST_REMEDY
from ckpt.units import CHUNK_BYTES, ByteCount, Digest

_ZEROS_KEPT: Final = 16


class Chunks:
    """The chunks of version 1 in a backend."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def read(self, chunk: Chunk) -> bytes:
        """The chunk's plain bytes.

        Raises:
            ObjectMissing: it is not there.
            ObjectCorrupt: damaged, or of another size.
        """
        limit = HEADER_BYTES + chunk.size_bytes + BODY_SLACK_BYTES
        content = self._backend.read(layout.chunk(chunk.digest), limit)
        if content is None:
            if chunk.digest == _digest_of_zeros(chunk.size_bytes):
                return bytes(chunk.size_bytes)
            raise self._lost(chunk.digest)
        plain = _plain_chunk(chunk.digest, content)
        if len(plain) != chunk.size_bytes:
            raise _damaged(chunk.digest, f"{len(plain)} plain bytes where {chunk.size_bytes} are expected")
        return plain

    def check(self, digest: Digest) -> ByteCount:
        """Read and verify a chunk of any size, and give its plain size.

        Raises:
            ObjectMissing: it is not there.
            ObjectCorrupt: damaged.
        """
        content = self._backend.read(layout.chunk(digest), Kind.CHUNK.object_bytes_max)
        if content is None:
            raise self._lost(digest)
        return ByteCount(len(_plain_chunk(digest, content)))

    def present(self) -> set[Digest]:
        """All chunks that are there."""
        names = self._backend.list(layout.CHUNKS)
        return {digest for name in names if (digest := layout.digest_in(name))}

    def _lost(self, digest: Digest) -> ObjectMissing:
        return ObjectMissing(place=self._backend.place, kind="chunk", name=digest, remedy=LOST_REMEDY)


class ChunkedContents:
    """The files of a checkpoint of version 1. Fits contents.Contents."""

    def __init__(self, backend: Backend, checkpoint: ChunkedCheckpoint) -> None:
        self._chunks = Chunks(backend)
        self._files = {file.today().root: file for file in checkpoint.files}

    def pieces(self, file: StoredFile) -> Iterator[Piece]:
        """The chunks of the file, in order."""
        offset = 0
        for number, chunk in enumerate(self._chunked(file).chunks):
            yield Piece(offset=offset, size_bytes=chunk.size_bytes, number=number)
            offset += chunk.size_bytes

    def read(self, file: StoredFile, piece: Piece) -> bytes:
        """The verified bytes of a piece."""
        return self._chunks.read(self._chunked(file).chunks[piece.number])

    def read_range(self, file: StoredFile, offset: int, size: int) -> bytes:
        """The verified bytes from `offset` on; every chunk that has some of them is read whole."""
        end = offset + size
        return b"".join(
            self.read(file, piece)[max(0, offset - piece.offset) : end - piece.offset]
            for piece in self.pieces(file)
            if piece.offset < end and offset < piece.offset + piece.size_bytes
        )

    def page_digests(self, file: StoredFile) -> bytes:
        """The digests of the pages of the file: its chunks are larger, so that all of it is read."""
        digests, rest = [], b""
        for piece in self.pieces(file):
            plain = rest + self.read(file, piece)
            whole = len(plain) // CHUNK_BYTES * CHUNK_BYTES
            digests += chunk_digests(plain[:whole])
            rest = plain[whole:]
        if rest:
            digests += chunk_digests(rest.ljust(CHUNK_BYTES, b"\0"))
        return b"".join(digests)

    def _chunked(self, file: StoredFile) -> ChunkedFile:
        return self._files[file.root]


def _plain_chunk(digest: Digest, content: bytes) -> bytes:
    plain = from_object(Kind.CHUNK, digest, content)
    if (found := digest_of(plain)) != digest:
        raise _damaged(digest, f"the digest of its content is {found}")
    return plain


@lru_cache(maxsize=_ZEROS_KEPT)
def _digest_of_zeros(size_bytes: int) -> Digest:
    return digest_of(bytes(size_bytes))


def _damaged(digest: Digest, reason: str) -> ObjectCorrupt:
    return ObjectCorrupt(kind=str(Kind.CHUNK), name=digest, reason=reason)
