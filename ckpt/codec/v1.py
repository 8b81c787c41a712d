"""Manifests of version 1: files as lists of chunks of any size, each an object of its own.

Rules: F12, F13 and F101 of images/FORMAT.md. They are read for ever, and never written any more.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields

from ckpt.codec.v2 import InodeRecordV2, PendingTimerV2
from ckpt.model.checkpoint import (
    CarriedFile,
    Checkpoint,
    DumpOptions,
    DumpStatistics,
    HostFacts,
    ImageSet,
    StoredFile,
)
from ckpt.model.clocks import Clocks
from ckpt.model.workload import Workload
from ckpt.units import ByteCount, CheckpointId, Digest, JobName, Nanoseconds, Pid


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """A piece of a file: the digest and size of its plain bytes."""

    digest: Digest
    size_bytes: ByteCount


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkedFile:
    """A file as its chunks in order; their sizes add up to `size_bytes`."""

    name: str
    size_bytes: ByteCount
    mode: int
    chunks: tuple[Chunk, ...]

    def today(self) -> StoredFile:
        """The file as later versions describe it; the root of version 1 is the digest of the list."""
        listed = b"".join(bytes.fromhex(chunk.digest) for chunk in self.chunks)
        root = Digest(hashlib.sha256(b"ckpt chunks 1" + listed).hexdigest())
        return StoredFile(name=self.name, size_bytes=self.size_bytes, mode=self.mode, root=root)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkedImageSet:
    """An image set of version 1."""

    root: Pid
    files: tuple[ChunkedFile, ...]
    statistics: DumpStatistics | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkedCarriedFile:
    """A carried file of version 1."""

    path: str
    temporary: bool
    handle: str | None
    uid: int
    gid: int
    mtime_ns: Nanoseconds
    content: ChunkedFile


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkedCheckpoint:
    """A checkpoint of version 1; its fields are those of today."""

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
    image_sets: tuple[ChunkedImageSet, ...]
    inodes: tuple[InodeRecordV2, ...]
    carried_files: tuple[ChunkedCarriedFile, ...]

    @property
    def files(self) -> tuple[ChunkedFile, ...]:
        """Every file of it, in the order of Checkpoint.files."""
        return (
            *(file for images in self.image_sets for file in images.files),
            *(carried.content for carried in self.carried_files),
        )

    def today(self) -> Checkpoint:
        """The checkpoint as later versions describe it."""
        same = {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if field.name not in {"timers", "image_sets", "inodes", "carried_files"}
        }
        return Checkpoint(
            **same,
            timers=tuple(timer.today() for timer in self.timers),
            image_sets=tuple(
                ImageSet(
                    root=images.root,
                    files=tuple(file.today() for file in images.files),
                    statistics=images.statistics,
                )
                for images in self.image_sets
            ),
            inodes=tuple(inode.today() for inode in self.inodes),
            waits=(),
            saved_files=(),
            saved_directories=(),
            volumes=(),
            settings=(),
            networks=(),
            carried_files=tuple(
                CarriedFile(
                    path=carried.path,
                    temporary=carried.temporary,
                    handle=carried.handle,
                    uid=carried.uid,
                    gid=carried.gid,
                    mtime_ns=carried.mtime_ns,
                    content=carried.content.today(),
                )
                for carried in self.carried_files
            ),
        )
