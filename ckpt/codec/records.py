"""The small values that a store keeps beside its checkpoints.

Rules: F31, F33, F34, F79, F98 and F100 of images/FORMAT.md.
"""

from __future__ import annotations

from dataclasses import dataclass

from ckpt.units import ByteCount, CheckpointId, Digest, JobName, Nanoseconds, Tag


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreConfigV1:
    """What a store of version 1 says of itself: a random id, and the size of the chunks that its writers cut."""

    id: Digest
    chunk_bytes: ByteCount

    def today(self) -> StoreConfig:
        """The config that the store gets at the first write: what is in it was never signed."""
        return StoreConfig(id=self.id, signatures_required=False, encryption=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Encryption:
    """How the key that opens the objects is kept: sealed with what scrypt makes of the user's secret."""

    kdf_salt: str
    kdf_cost_log2: int
    wrapped_key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreConfig:
    """What a store says of itself: a random id, and how its checkpoints are protected.

    `signatures_required`: nothing is restored from it that no trusted key has signed.
    """

    id: Digest
    signatures_required: bool
    encryption: Encryption | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What a store keeps beside a manifest, to find it by its job and to tell what it cost.

    `new_bytes` are the plain bytes of the chunks that the store had not seen, `packs_stored_bytes` the
    space that the packs, the index and the placement took on disk. Nothing of it is needed to restore.
    """

    checkpoint: CheckpointId
    job: JobName | None
    created_ns: Nanoseconds
    new_bytes: ByteCount
    packs_stored_bytes: ByteCount


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiptV1:
    """A receipt of version 1."""

    checkpoint: CheckpointId
    job: JobName | None
    created_ns: Nanoseconds
    new_bytes: ByteCount
    chunks_stored_bytes: ByteCount

    def today(self) -> Receipt:
        """The receipt as later versions write it."""
        return Receipt(
            checkpoint=self.checkpoint,
            job=self.job,
            created_ns=self.created_ns,
            new_bytes=self.new_bytes,
            packs_stored_bytes=self.chunks_stored_bytes,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TagMark:
    """That a tag was given to a checkpoint; of several marks of one tag the highest `serial` counts."""

    tag: Tag
    serial: int
    checkpoint: CheckpointId


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """That the holder of a key vouches for a checkpoint: its public key and its signature (Ed25519), in hexadecimal."""

    checkpoint: CheckpointId
    public_key: str
    signature: str
    signed_ns: Nanoseconds

    @property
    def message(self) -> bytes:
        """What is signed: it can be taken for nothing else."""
        instant = self.signed_ns.to_bytes(8, "big", signed=True)
        return b"ckpt checkpoint signature 1\0" + bytes.fromhex(self.checkpoint) + instant
