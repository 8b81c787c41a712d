"""The documents of a store: what is written, and in which version.

Rules: F12 and F30 of images/FORMAT.md. A version goes up when a field is added, removed or means something
else; readers keep reading the older ones.
"""

from __future__ import annotations

import hashlib
from typing import Final

from ckpt.codec.document import DocumentType
from ckpt.codec.frame import Kind
from ckpt.codec.records import Receipt, StoreConfig, TagMark
from ckpt.model.checkpoint import Checkpoint
from ckpt.units import CheckpointId, Digest

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
