"""The documents of a store: what is written, and in which version.

Rules: F12, F30 and F32 of images/FORMAT.md. A version goes up when a field is added, removed or means something
else; readers keep reading the older ones.
"""

from __future__ import annotations

import hashlib
from typing import Final

from ckpt.codec.document import DocumentType
from ckpt.codec.frame import Kind
from ckpt.codec.records import Receipt, ReceiptV1, Signature, StoreConfig, StoreConfigV1, TagMark
from ckpt.codec.v1 import ChunkedCheckpoint
from ckpt.codec.v2 import CheckpointV2
from ckpt.model.checkpoint import Checkpoint
from ckpt.units import CHUNK_BYTES, CheckpointId, Digest

CONFIG: Final = DocumentType(kind=Kind.CONFIG, version=2, content=StoreConfig, older={1: StoreConfigV1})
MANIFEST: Final = DocumentType(
    kind=Kind.MANIFEST, version=3, content=Checkpoint, older={1: ChunkedCheckpoint, 2: CheckpointV2}
)
RECEIPT: Final = DocumentType(kind=Kind.RECEIPT, version=2, content=Receipt, older={1: ReceiptV1})
TAG_MARK: Final = DocumentType(kind=Kind.TAG, version=1, content=TagMark)
SIGNATURE: Final = DocumentType(kind=Kind.SIGNATURE, version=1, content=Signature)

ZERO_CHUNK: Final = bytes(CHUNK_BYTES)
ZERO_DIGEST: Final = hashlib.sha256(ZERO_CHUNK).digest()


def digest_of(content: bytes | memoryview) -> Digest:
    """The SHA-256 of the bytes."""
    return Digest(hashlib.sha256(content).hexdigest())


def checkpoint_id(manifest: bytes) -> CheckpointId:
    """The id of the checkpoint with this manifest: the digest of the document's plain bytes."""
    return CheckpointId(digest_of(manifest))


def chunk_digests(chunks: bytes | bytearray) -> list[bytes]:
    """The SHA-256 of each chunk of whole ones."""
    view, sha256 = memoryview(chunks), hashlib.sha256
    return [sha256(view[at : at + CHUNK_BYTES]).digest() for at in range(0, len(chunks), CHUNK_BYTES)]


class RootDigest:
    """The root of a file, from the digests of its chunks (F32)."""

    def __init__(self, size_bytes: int) -> None:
        self._sha256 = hashlib.sha256(b"ckpt file 2\0" + size_bytes.to_bytes(8, "big"))

    def add(self, digests: bytes | bytearray) -> None:
        """Take in the digests of the next chunks."""
        self._sha256.update(digests)

    def root(self) -> Digest:
        """The root of what was taken in."""
        return Digest(self._sha256.hexdigest())
