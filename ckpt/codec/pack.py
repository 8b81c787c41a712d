"""A pack: chunks in compressed blobs, and at its end the list of them.

    PACK   = HEADER SALT BLOB* LIST LIST_BYTES        (the header is the frame's, see frame.py)
    LIST   = COUNT ENTRY* DIGEST*                     (numbers are big-endian)
    ENTRY  = STORED_BYTES u32, CHUNKS u16, ENCODING u8, KIND u8

Rules: F80 to F86 of images/FORMAT.md. The name of a pack is the digest of its salt and its list. What the list
says of a chunk is the digest that the finished chunk must have: of a delta, of what it gives on top of its base.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from typing import Final

from ckpt.codec.frame import HEADER_BYTES, SALT_BYTES, Compression, Kind
from ckpt.codec.limits import BLOB_CHUNKS_MAX, BODY_SLACK_BYTES, PACK_BLOBS_MAX
from ckpt.errors import ObjectCorrupt
from ckpt.units import CHUNK_BYTES

DIGEST_BYTES: Final = 32
TRAILER: Final = struct.Struct(">I")

_COUNT: Final = struct.Struct(">I")
_ENTRY: Final = struct.Struct(">IHBB")
_STORED_MAX: Final = BLOB_CHUNKS_MAX * CHUNK_BYTES + BODY_SLACK_BYTES


class BlobKind(IntEnum):
    """What the chunks of a blob are."""

    WHOLE = 0
    DELTA = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class BlobEntry:
    """One blob: `stored_bytes` of it in the pack, `chunks` of CHUNK_BYTES plain bytes each."""

    stored_bytes: int
    chunks: int
    compression: Compression
    kind: BlobKind


@dataclass(frozen=True, kw_only=True)
class PackList:
    """What is in a pack. A chunk's number is BLOB_CHUNKS_MAX × the number of its blob + its place in the blob."""

    blobs: tuple[BlobEntry, ...]
    digests: bytes

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """Where each blob begins in the object, and where the list does."""
        offset, found = HEADER_BYTES + SALT_BYTES, []
        for blob in self.blobs:
            found.append(offset)
            offset += blob.stored_bytes
        return (*found, offset)

    @cached_property
    def _first_digests(self) -> tuple[int, ...]:
        """How many digests come before those of each blob."""
        before, found = 0, []
        for blob in self.blobs:
            found.append(before)
            before += blob.chunks
        return tuple(found)

    @property
    def chunk_count(self) -> int:
        """How many chunks there are."""
        return len(self.digests) // DIGEST_BYTES

    def digests_of(self, chunk: int, count: int) -> bytes:
        """The digests of `count` chunks from this number on, all of one blob."""
        blob, place = divmod(chunk, BLOB_CHUNKS_MAX)
        first = self._first_digests[blob] + place
        return self.digests[first * DIGEST_BYTES : (first + count) * DIGEST_BYTES]

    def holds(self, chunk: int, count: int) -> bool:
        """Whether all these chunks are in one blob of it."""
        blob, place = divmod(chunk, BLOB_CHUNKS_MAX)
        return blob < len(self.blobs) and place + count <= self.blobs[blob].chunks

    def chunks_in(self, blob: int) -> int:
        """How many chunks a blob has; 0 if there is no such blob."""
        return self.blobs[blob].chunks if blob < len(self.blobs) else 0

    def encode(self) -> bytes:
        """The list's plain bytes."""
        entries = b"".join(
            _ENTRY.pack(blob.stored_bytes, blob.chunks, blob.compression, blob.kind) for blob in self.blobs
        )
        return _COUNT.pack(len(self.blobs)) + entries + self.digests


def decode_list(content: bytes, name: str) -> PackList:
    """The list of the pack that the errors call `name`.

    Raises:
        ObjectCorrupt: not what the format says.
    """
    if len(content) < _COUNT.size:
        raise damaged(name, f"its list has {len(content)} bytes")
    (count,) = _COUNT.unpack_from(content)
    end = _COUNT.size + count * _ENTRY.size
    if not 0 < count <= PACK_BLOBS_MAX or end > len(content):
        raise damaged(name, f"a list of {count} blobs in {len(content)} bytes")
    blobs = tuple(_entry(name, *fields) for fields in _ENTRY.iter_unpack(content[_COUNT.size : end]))
    found = PackList(blobs=blobs, digests=content[end:])
    expected = sum(blob.chunks for blob in blobs) * DIGEST_BYTES
    if len(found.digests) != expected:
        raise damaged(
            name, f"{expected} bytes of digests should follow its list, and {len(found.digests)} do"
        )
    return found


def _entry(name: str, stored_bytes: int, chunks: int, compression: int, kind: int) -> BlobEntry:
    if not 0 < chunks <= BLOB_CHUNKS_MAX:
        raise damaged(name, f"a blob of {chunks} chunks")
    if not 0 < stored_bytes <= _STORED_MAX:
        raise damaged(name, f"a blob of {stored_bytes} bytes")
    if compression not in set(Compression) or kind not in set(BlobKind):
        raise damaged(name, f"a blob of the kind {kind} in compression {compression}")
    return BlobEntry(
        stored_bytes=stored_bytes,
        chunks=chunks,
        compression=Compression(compression),
        kind=BlobKind(kind),
    )


def damaged(name: str, reason: str) -> ObjectCorrupt:
    """The refusal of a pack."""
    return ObjectCorrupt(kind=str(Kind.PACK), name=name, reason=reason)
