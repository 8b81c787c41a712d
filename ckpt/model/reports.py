"""What the use cases answer; the command line turns these into text and JSON."""

from __future__ import annotations

from dataclasses import dataclass

from ckpt.model.checkpoint import Checkpoint
from ckpt.model.inodes import FileChange
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
    """What a sweep removed: objects and the bytes that they took on disk."""

    removed_objects: int
    freed_bytes: ByteCount


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
    """A finished restore: `pid` is the first tree's root as this host sees it, `pids` all roots."""

    id: CheckpointId
    job: JobName
    pid: Pid
    pids: tuple[Pid, ...]
    cgroup: str
    restore_ns: Nanoseconds
    total_ns: Nanoseconds
    file_changes: tuple[FileChange, ...]
    warnings: tuple[str, ...]
