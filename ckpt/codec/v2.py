"""Manifests of version 2, in which a file has one identity, and nothing but memory is kept.

Rules: F12, F13 and F105 of images/FORMAT.md. They are read for ever, and never written any more.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from ckpt.model.checkpoint import CarriedFile, Checkpoint, DumpOptions, HostFacts, ImageSet
from ckpt.model.clocks import Clocks, PendingTimer, TimerKind
from ckpt.model.inodes import DigestState, FileKind, FileSystem, InodeRecord, Role
from ckpt.model.workload import Workload
from ckpt.units import (
    ByteCount,
    CheckpointId,
    DeviceNumber,
    Digest,
    InodeNumber,
    JobName,
    Nanoseconds,
    Pid,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingTimerV2:
    """An armed timer, as versions 1 and 2 describe it."""

    pid: Pid
    kind: TimerKind
    clock: str
    value_ns: Nanoseconds
    interval_ns: Nanoseconds

    def today(self) -> PendingTimer:
        """The timer as later versions write it: nobody knows of a time of the wall clock."""
        return PendingTimer(
            **{field.name: getattr(self, field.name) for field in fields(self)}, absolute=False
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class InodeRecordV2:
    """One file at the freeze, as versions 1 and 2 describe it."""

    path: str
    kind: FileKind
    device: DeviceNumber
    inode: InodeNumber
    generation: int | None
    size_bytes: ByteCount
    mode: int
    uid: int
    gid: int
    mtime_ns: Nanoseconds
    ctime_ns: Nanoseconds
    btime_ns: Nanoseconds | None
    links: int
    deleted: bool
    filesystem: FileSystem
    build_id: str | None
    handle: str | None
    digest: Digest | None
    digest_state: DigestState
    roles: tuple[Role, ...]

    def today(self) -> InodeRecord:
        """The record as later versions write it: the workload saw what is real."""
        return InodeRecord(**{field.name: getattr(self, field.name) for field in fields(self)}, seen=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointV2:
    """A checkpoint of version 2; its fields are those of today."""

    job: JobName | None
    message: str
    created_ns: Nanoseconds
    parent: CheckpointId | None
    frozen_ns: Nanoseconds
    dump_ns: Nanoseconds
    host: HostFacts
    clocks: Clocks
    timers: tuple[PendingTimerV2, ...]
    options: DumpOptions
    workload: Workload
    image_sets: tuple[ImageSet, ...]
    inodes: tuple[InodeRecordV2, ...]
    carried_files: tuple[CarriedFile, ...]

    def today(self) -> Checkpoint:
        """The checkpoint as later versions describe it."""
        same = {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if field.name not in {"timers", "inodes"}
        }
        return Checkpoint(
            **same,
            timers=tuple(timer.today() for timer in self.timers),
            inodes=tuple(inode.today() for inode in self.inodes),
            waits=(),
            saved_files=(),
            saved_directories=(),
            volumes=(),
            settings=(),
            networks=(),
        )
