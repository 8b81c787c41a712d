"""Chunks and documents in a backend: named, framed, compressed; verified whenever they are read.

Rules: F30 to F36 of images/FORMAT.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum, auto
from functools import lru_cache
from typing import Final, TypeVar

from ckpt.codec.document import DocumentType
from ckpt.codec.frame import HEADER_BYTES, Kind, read_header
from ckpt.codec.limits import BODY_SLACK_BYTES
from ckpt.codec.objects import MANIFEST, checkpoint_id, digest_of
from ckpt.errors import ObjectCorrupt, ObjectMissing
from ckpt.model.checkpoint import Checkpoint, Chunk
from ckpt.store import layout
from ckpt.store.backend import Backend
from ckpt.store.compress import from_object, to_object
from ckpt.units import ByteCount, CheckpointId, Digest

_Value = TypeVar("_Value")

_LIST_REMEDY: Final = "'ckpt list' shows what it has."
_LOST_REMEDY: Final = "Run 'ckpt verify' to see what else is affected; restore another checkpoint."


class _Presence(Enum):
    """What a look at an object's header tells."""

    ABSENT = auto()
    DAMAGED = auto()
    WHOLE = auto()


class Objects:
    """What a backend keeps, as plain bytes and values."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def put_chunk(self, digest: Digest, plain: bytes) -> ByteCount | None:
        """Keep a chunk, and give the space that it takes; None if it was there or needs none.

        Raises:
            NoSpace: full; nothing of the chunk remains.
        """
        if plain == bytes(len(plain)):
            return None
        name = layout.chunk(digest)
        match self._presence(digest):
            case _Presence.WHOLE:
                return None
            case _Presence.ABSENT:
                return self._backend.create(name, to_object(Kind.CHUNK, plain))
            case _Presence.DAMAGED:
                # Every checkpoint that needs it is healed.
                return self._backend.replace(name, to_object(Kind.CHUNK, plain))

    def _presence(self, digest: Digest) -> _Presence:
        """Whether a writer may rely on a chunk: it is there, with a header, and as long as that says."""
        name = layout.chunk(digest)
        found = self._backend.stat(name)
        start = self._backend.read_part(name, 0, HEADER_BYTES) if found else None
        if found is None or start is None:
            return _Presence.ABSENT
        try:
            read_header(start, Kind.CHUNK, digest, found.size_bytes)
        except ObjectCorrupt:
            return _Presence.DAMAGED
        return _Presence.WHOLE

    def read_chunk(self, chunk: Chunk) -> bytes:
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
            raise _damaged(
                Kind.CHUNK, chunk.digest, f"{len(plain)} plain bytes where {chunk.size_bytes} are expected"
            )
        return plain

    def require_chunk(self, chunk: Chunk) -> None:
        """Raise ObjectMissing unless a manifest may refer to this chunk."""
        is_there = self._presence(chunk.digest) is _Presence.WHOLE
        if not is_there and chunk.digest != _digest_of_zeros(chunk.size_bytes):
            raise self._lost(chunk.digest)

    def check_chunk(self, digest: Digest) -> ByteCount:
        """Read and verify a chunk of any size, and give its plain size.

        Raises:
            ObjectMissing: it is not there.
            ObjectCorrupt: damaged.
        """
        content = self._backend.read(layout.chunk(digest), Kind.CHUNK.object_bytes_max)
        if content is None:
            raise self._lost(digest)
        return ByteCount(len(_plain_chunk(digest, content)))

    def put_plain(self, name: str, kind: Kind, plain: bytes) -> ByteCount | None:
        """Keep a document's bytes, and give the space that they take; None if one of this name was there.

        Raises:
            NoSpace: full; nothing of the document remains.
        """
        return self._backend.create(name, to_object(kind, plain))

    def read_document(self, name: str, document: DocumentType[_Value], called: str) -> _Value | None:
        """The document of this name, which the errors call `called`; None if there is none."""
        plain = self._read_plain(name, document.kind, called)
        return None if plain is None else document.decode(plain, called)

    def read_manifest(self, checkpoint: CheckpointId) -> Checkpoint:
        """The checkpoint of this id.

        Raises:
            ObjectMissing: the store has none.
            ObjectCorrupt: damaged.
            FormatUnknown: written by a newer ckpt.
        """
        plain = self._read_plain(layout.manifest(checkpoint), Kind.MANIFEST, checkpoint)
        if plain is None:
            raise ObjectMissing(
                place=self._backend.place, kind="checkpoint", name=checkpoint, remedy=_LIST_REMEDY
            )
        if (found := checkpoint_id(plain)) != checkpoint:
            raise _damaged(Kind.MANIFEST, checkpoint, f"the digest of its content is {found}")
        return MANIFEST.decode(plain, checkpoint)

    def _lost(self, digest: Digest) -> ObjectMissing:
        return ObjectMissing(place=self._backend.place, kind="chunk", name=digest, remedy=_LOST_REMEDY)

    def _read_plain(self, name: str, kind: Kind, called: str) -> bytes | None:
        content = self._backend.read(name, kind.object_bytes_max)
        return None if content is None else from_object(kind, called, content)


def chunks_of(checkpoint: Checkpoint) -> Iterator[Chunk]:
    """Every reference to a chunk in a checkpoint, in order; the same chunk may come several times."""
    for images in checkpoint.image_sets:
        for file in images.files:
            yield from file.chunks
    for carried in checkpoint.carried_files:
        yield from carried.content.chunks


def _plain_chunk(digest: Digest, content: bytes) -> bytes:
    plain = from_object(Kind.CHUNK, digest, content)
    if (found := digest_of(plain)) != digest:
        raise _damaged(Kind.CHUNK, digest, f"the digest of its content is {found}")
    return plain


@lru_cache(maxsize=16)
def _digest_of_zeros(size_bytes: int) -> Digest:
    return digest_of(bytes(size_bytes))


def _damaged(kind: Kind, name: str, reason: str) -> ObjectCorrupt:
    return ObjectCorrupt(kind=str(kind), name=name, reason=reason)
