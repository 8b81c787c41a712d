"""What the use cases answer; the command line turns these into text and JSON."""

from __future__ import annotations

from dataclasses import dataclass

from ckpt.model.checkpoint import Checkpoint
from ckpt.model.inodes import FileChange, InodeOutcome
from ckpt.units import ByteCount, CheckpointId, JobName, Nanoseconds, Pid, Tag


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredCheckpoint:
    """A checkpoint in a store: `stored_bytes` is what the store grew by when it was written."""

    id: CheckpointId
    checkpoint: Checkpoint
    tags: tuple[Tag, ...]
    stored_bytes: ByteCount


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing that a verification found wrong."""

    slug: str
    subject: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReport:
    """The outcome of reading everything."""

    checked_chunks: int
    checked_bytes: ByteCount
    problems: tuple[Problem, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepReport:
    """What a sweep removed: objects, and the bytes that the store takes less on disk.

    `repacked_bytes` were written anew, because they stood among what nobody needs.
    """

    removed_objects: int
    freed_bytes: ByteCount
    repacked_bytes: ByteCount = ByteCount(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobStatistics:
    """What the checkpoints of one job (None: those without one) take.

    `plain_bytes`: the sizes of all their files, added up. `unique_bytes`: plain bytes of the distinct chunks
    that they refer to. `exclusive_bytes`: of those, what no other job needs. `stored_bytes`: the space of
    the packs, in proportion to the chunks that this job alone needs, and its documents.
    """

    job: JobName | None
    checkpoints: int
    plain_bytes: ByteCount
    unique_bytes: ByteCount
    exclusive_bytes: ByteCount
    stored_bytes: ByteCount


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreStatistics:
    """What a store holds and takes; `garbage_bytes` is the space that a sweep would free at once."""

    checkpoints: int
    plain_bytes: ByteCount
    unique_bytes: ByteCount
    stored_bytes: ByteCount
    garbage_bytes: ByteCount
    packs: int
    encrypted: bool
    signatures_required: bool
    jobs: tuple[JobStatistics, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferReport:
    """What moving a checkpoint into a store did: `new_bytes` plain bytes were new there."""

    id: CheckpointId
    image_bytes: ByteCount
    new_bytes: ByteCount
    stored_bytes: ByteCount
    was_there: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class DumpReport:
    """A finished dump. `new_bytes` are plain bytes that the store had not seen."""

    id: CheckpointId
    checkpoint: Checkpoint
    total_ns: Nanoseconds
    new_bytes: ByteCount
    stored_bytes: ByteCount
    stopped: bool
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreReport:
    """A finished restore: `pid` is the first tree's root as this host sees it, `pids` all roots.

    It went on after `resumed_ns`; where it is `lazy`, its memory was there only at the end.
    """

    id: CheckpointId
    job: JobName
    pid: Pid
    pids: tuple[Pid, ...]
    cgroup: str
    restore_ns: Nanoseconds
    resumed_ns: Nanoseconds
    total_ns: Nanoseconds
    lazy: bool
    file_changes: tuple[FileChange, ...]
    inodes: tuple[InodeOutcome, ...]
    warnings: tuple[str, ...]
