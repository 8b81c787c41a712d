"""The documents of a store: what is written, and in which version.

Rules: F30 to F39 of images/FORMAT.md. A version goes up when a field is added, removed or means something
else; readers keep reading the older ones.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final

from ckpt.codec.document import DocumentType
from ckpt.codec.frame import Kind
from ckpt.model.checkpoint import Checkpoint
from ckpt.units import ByteCount, CheckpointId, Digest, JobName, Nanoseconds, Tag


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreConfig:
    """What a store says of itself: a random id, and the size of the chunks that its writers cut."""

    id: Digest
    chunk_bytes: ByteCount


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What a store keeps beside a manifest, to find it by its job and to tell what it cost.

    `new_bytes` are the plain bytes of the chunks that the store had not seen, `chunks_stored_bytes` the
    space that these took on disk. Nothing of it is needed to restore.
    """

    checkpoint: CheckpointId
    job: JobName | None
    created_ns: Nanoseconds
    new_bytes: ByteCount
    chunks_stored_bytes: ByteCount


@dataclass(frozen=True, slots=True, kw_only=True)
class TagMark:
    """That a tag was given to a checkpoint; of several marks of one tag the highest `serial` counts."""

    tag: Tag
    serial: int
    checkpoint: CheckpointId


CONFIG: Final = DocumentType(kind=Kind.CONFIG, version=1, content=StoreConfig)
MANIFEST: Final = DocumentType(kind=Kind.MANIFEST, version=1, content=Checkpoint)
RECEIPT: Final = DocumentType(kind=Kind.RECEIPT, version=1, content=Receipt)
TAG_MARK: Final = DocumentType(kind=Kind.TAG, version=1, content=TagMark)


def digest_of(content: bytes | memoryview) -> Digest:
    """The SHA-256 of the bytes."""
    return Digest(hashlib.sha256(content).hexdigest())


def checkpoint_id(manifest: bytes) -> CheckpointId:
    """The id of the checkpoint with this manifest: the digest of the document's plain bytes."""
    return CheckpointId(digest_of(manifest))
