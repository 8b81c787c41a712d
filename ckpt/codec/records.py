"""The small values that a store keeps beside its checkpoints.

Rules: F31, F33 and F34 of images/FORMAT.md.
"""

from __future__ import annotations

from dataclasses import dataclass

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
