"""A checkpoint: the root value. Everything that a restore needs hangs below it."""

from __future__ import annotations

from dataclasses import dataclass

from ckpt.model.clocks import Clocks, PendingTimer, PendingWait
from ckpt.model.inodes import InodeRecord
from ckpt.model.network import Network
from ckpt.model.settings import ProcessSettings
from ckpt.model.workload import Workload
from ckpt.units import ByteCount, CheckpointId, DeviceNumber, Digest, JobName, Nanoseconds, Pid


@dataclass(frozen=True, slots=True, kw_only=True)
class HostFacts:
    """The host that the workload was dumped on."""

    hostname: str
    kernel: str
    architecture: str
    distribution: str
    cpu_model: str
    cpu_flags: tuple[str, ...]
    libc: str
    criu_version: str
    ckpt_version: str

    @property
    def cpu_features(self) -> tuple[str, ...]:
        """The kernel's words for what the CPU can do, sorted, each once; none where the host did not tell."""
        return tuple(sorted(set(self.cpu_flags)))


@dataclass(frozen=True, slots=True, kw_only=True)
class DumpOptions:
    """What CRIU was told at the dump and must be told again at the restore."""

    tcp_established: bool = False
    file_locks: bool = True
    link_remap: bool = True
    shell_job: bool = False
    external_unix: bool = False
    ghost_limit_bytes: ByteCount = ByteCount(0)

    @property
    def tcp_close(self) -> bool:
        """Whether open TCP connections come back closed."""
        return False

    @property
    def recorded(self) -> DumpOptions:
        """What a checkpoint must say of them: what CRIU does not write into its images itself."""
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class ClosingOptions(DumpOptions):
    """Options of a dump from which open TCP connections come back closed."""

    @property
    def tcp_close(self) -> bool:
        """They do."""
        return True

    @property
    def recorded(self) -> DumpOptions:
        """All but that."""
        return DumpOptions(
            tcp_established=self.tcp_established,
            file_locks=self.file_locks,
            link_remap=self.link_remap,
            shell_job=self.shell_job,
            external_unix=self.external_unix,
            ghost_limit_bytes=self.ghost_limit_bytes,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DumpStatistics:
    """CRIU's own figures of one dump (stats-dump): durations in nanoseconds, counts of 4 KiB pages."""

    freezing_ns: Nanoseconds
    frozen_ns: Nanoseconds
    memory_dump_ns: Nanoseconds
    memory_write_ns: Nanoseconds
    pages_scanned: int
    pages_written: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFile:
    """A file, named by its content: `root` is the digest over the digests of its chunks (F32 of FORMAT.md).

    The name has no directory. Where the chunks lie, each store knows for itself.
    """

    name: str
    size_bytes: ByteCount
    mode: int
    root: Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class AddressRun:
    """Chunks of a file that follow each other in one address space, so that the next dump finds them again.

    Chunk `chunk` of the file, counted from 0, is the page with the number `page` (address / 4096) of `space`,
    and so are the `count - 1` after it. A space is named by whatever stays the same from dump to dump.
    """

    space: str
    page: int
    chunk: int
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSet:
    """CRIU's image files of one tree's dump.

    `statistics` is None where the checkpoint was durable before CRIU had finished and counted.
    """

    root: Pid
    files: tuple[StoredFile, ...]
    statistics: DumpStatistics | None

    @property
    def image_bytes(self) -> ByteCount:
        """The plain size of all files."""
        return ByteCount(sum(file.size_bytes for file in self.files))


@dataclass(frozen=True, slots=True, kw_only=True)
class CarriedFile:
    """A file that CRIU leaves out but the workload needs.

    Shared memory by name (/dev/shm) is part of the workload's memory: it is written back. A link that CRIU
    made for a file whose own name is gone (link_remap) is put back for the time of the restore: a hard link to
    the file with this `handle` (type and hex) where it still is, else a copy.
    """

    path: str
    temporary: bool
    handle: str | None
    uid: int
    gid: int
    mtime_ns: Nanoseconds
    content: StoredFile


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtendedAttribute:
    """An extended attribute of a file; `value` is in hexadecimal."""

    name: str
    value: str


def is_own_attribute(name: str) -> bool:
    """Whether an extended attribute of this name is the file's own: of its user, or its access control list."""
    return name.startswith("user.") or name == "system.posix_acl_access"


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedFile:
    """A file that the user asked to be kept with the memory, as it was at the freeze; `mode` has its type bits.

    `attributes` are the extended ones that are its own, in the order of their names.
    """

    path: str
    mode: int
    uid: int
    gid: int
    mtime_ns: Nanoseconds
    content: StoredFile
    attributes: tuple[ExtendedAttribute, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    """A file system of the job's own, in an image file that is mounted through a loop device with a number of ours.

    `mountpoint` is absolute; `device` is what stat(2) gives for files on it; `content` is the whole image at the
    freeze.
    """

    mountpoint: str
    filesystem: str
    device: DeviceNumber
    content: StoredFile


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupInstant:
    """Which instant of a group a checkpoint is of: the jobs `members`, in alphabetical order, stood still together then.

    `name` is the group's, `instant` 16 random hexadecimal digits.
    """

    name: JobName
    instant: str
    members: tuple[JobName, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """One instant of a workload: image sets, clocks, inodes and host facts.

    `created_ns` is CLOCK_REALTIME at the freeze. `image_sets` are in the order of `workload.trees`.
    `frozen_ns` is from the freeze of the first task to the thaw of the last. `saved_directories` are those whose
    files were all saved: what else is in them at a restore was not there. `settings` are of the living processes, each
    at most once. `networks` are those of the workload's own that a restore makes again, one for each namespace.
    `group` is the instant that it shares with those of other jobs.
    """

    job: JobName | None
    message: str
    created_ns: Nanoseconds
    parent: CheckpointId | None
    frozen_ns: Nanoseconds
    dump_ns: Nanoseconds
    host: HostFacts
    clocks: Clocks
    timers: tuple[PendingTimer, ...]
    waits: tuple[PendingWait, ...]
    options: DumpOptions
    workload: Workload
    image_sets: tuple[ImageSet, ...]
    inodes: tuple[InodeRecord, ...]
    carried_files: tuple[CarriedFile, ...]
    saved_files: tuple[SavedFile, ...]
    saved_directories: tuple[str, ...]
    volumes: tuple[Volume, ...]
    settings: tuple[ProcessSettings, ...]
    networks: tuple[Network, ...]
    group: GroupInstant | None = None

    @property
    def image_bytes(self) -> ByteCount:
        """The plain size of all image files."""
        return ByteCount(sum(images.image_bytes for images in self.image_sets))

    @property
    def saved_bytes(self) -> ByteCount:
        """The plain size of all saved files; several names of one file count once."""
        return ByteCount(sum(content.size_bytes for content in {saved.content for saved in self.saved_files}))

    @property
    def files(self) -> tuple[StoredFile, ...]:
        """Every file of it: those of the image sets in their order, what is carried, what was saved, the volumes."""
        return (
            *(file for images in self.image_sets for file in images.files),
            *(carried.content for carried in self.carried_files),
            *(saved.content for saved in self.saved_files),
            *(volume.content for volume in self.volumes),
        )
