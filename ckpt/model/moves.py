"""What a migration reports, and how its files are named."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from ckpt.model.checkpoint import Checkpoint, StoredFile
from ckpt.model.migration import MigrationId
from ckpt.units import ByteCount, Digest, JobName, Nanoseconds, Pid


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundReport:
    """One round: bytes on the wire, how long it took, and how many pages it sent."""

    sent_bytes: ByteCount
    ns: Nanoseconds
    changed_pages: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MigrateReport:
    """A workload that was moved. `pid` and `pids` are the roots' on the target, as it sees them.

    `downtime_ns` is from the freeze here to the word that it runs there; the last of the rounds is within it, as are
    the dump, `dump_ns`, and the restore, `restore_ns`. With `lazy` the memory came after it: `total_ns` is until all was there.
    """

    id: MigrationId
    job: JobName
    host: str
    pid: Pid
    pids: tuple[Pid, ...]
    cgroup: str
    downtime_ns: Nanoseconds
    total_ns: Nanoseconds
    rounds: tuple[RoundReport, ...]
    sent_bytes: ByteCount
    dump_ns: Nanoseconds
    restore_ns: Nanoseconds
    warnings: tuple[str, ...]
    lazy: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Policies:
    """How a workload is to be restored on the target, in the words of the options of `ckpt restore`."""

    time: str
    inodes: str
    pids: str
    cgroup: str


def job_there(job: JobName | None, migration: str) -> JobName:
    """What a workload is called on the host that it has come to."""
    return job or JobName(migration[:12])


def extra_name(number: int) -> str:
    """What a file is called that is sent with the images and belongs to no image set."""
    return f"extra-{number}"


def extra_files(checkpoint: Checkpoint) -> tuple[StoredFile, ...]:
    """Those files of a checkpoint that was sent, by their numbers: what is carried, and the volumes."""
    carried = (file.content for file in checkpoint.carried_files)
    return (*carried, *(volume.content for volume in checkpoint.volumes))


def file_root(root: Pid, name: str) -> Digest:
    """What stands for the root of a file that a migration sends, as nobody has to store it: it tells which one it is."""
    return Digest(hashlib.sha256(f"{root}/{name}".encode()).hexdigest())
