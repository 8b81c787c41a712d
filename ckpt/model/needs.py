"""What a workload needs of the host that it is to run on.

Rule: made from a checkpoint or from a workload that runs, and judged on the host that is meant, which may be another
one: what stands here is all that this host is told.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final, TypeVar

from ckpt.model.checkpoint import Checkpoint
from ckpt.model.inodes import FileKind, InodeRecord
from ckpt.model.network import Network
from ckpt.model.workload import CgroupRecord, ExternalMount, Tree
from ckpt.units import ByteCount, CheckpointId, DeviceNumber, JobName, Pid

COMPARED_KINDS: Final = (FileKind.REGULAR, FileKind.DIRECTORY, FileKind.FIFO)
_PAGES: Final = "pages-"

UNTRUSTED: Final = "untrusted"
"""The rule of what nobody whom the host trusts has signed."""

Value = TypeVar("Value")


class KernelFeature(StrEnum):
    """What a kernel may lack. The values are told to people."""

    TIME_NAMESPACE = "time namespaces"
    USER_NAMESPACE = "user namespaces"
    PID_NAMESPACE = "PID namespaces"
    NETWORK_NAMESPACE = "network namespaces"
    IPC_NAMESPACE = "IPC namespaces"
    CGROUP_NAMESPACE = "cgroup namespaces"
    NFTABLES = "nftables"
    SECCOMP_FILTER = "seccomp filters"
    RSEQ = "restartable sequences (rseq)"
    IPV6 = "IPv6"
    USERFAULTFD = "userfaultfd with events (for --lazy)"


_OWN_NAMESPACES: Final = {
    "user": KernelFeature.USER_NAMESPACE,
    "pid": KernelFeature.PID_NAMESPACE,
    "net": KernelFeature.NETWORK_NAMESPACE,
    "ipc": KernelFeature.IPC_NAMESPACE,
    "cgroup": KernelFeature.CGROUP_NAMESPACE,
}


class Protocol(StrEnum):
    """The protocols whose ports may be taken."""

    TCP = "tcp"
    UDP = "udp"
    UDP_LITE = "udp-lite"


@dataclass(frozen=True, slots=True, kw_only=True)
class NeededPid:
    """A pid or thread id that must be free; `name` is the process's."""

    pid: Pid
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NeededPort:
    """A local address and port that a socket is bound to; port 0 of a connection, which needs its address alone.

    `address` is numeric. `only_v6` is IPV6_V6ONLY; `foreign_address` says that the socket may be bound to an
    address that the host does not have (IP_FREEBIND, and always for IPv6: CRIU sets it).
    """

    protocol: Protocol
    address: str
    port: int
    only_v6: bool
    foreign_address: bool

    @property
    def is_v6(self) -> bool:
        """Whether it is an address of IPv6."""
        return ":" in self.address

    def __str__(self) -> str:
        address = f"[{self.address}]" if self.is_v6 else self.address
        return f"{self.protocol} {address}:{self.port}" if self.port else f"{self.protocol} {address}"


@dataclass(frozen=True, slots=True, kw_only=True)
class NeededName:
    """The name of a unix socket: an absolute path, or with a leading "@" an abstract one as /proc/net/unix has it."""

    name: str

    @property
    def is_abstract(self) -> bool:
        """Whether it has no place in a file system."""
        return self.name.startswith("@")


@dataclass(frozen=True, slots=True, kw_only=True)
class NeededHugePages:
    """Huge pages of one size, in bytes, and how many of them are mapped: all of these are reserved."""

    page_bytes: ByteCount
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NeededVolume:
    """A volume that will be mounted with this device number."""

    mountpoint: str
    filesystem: str
    device: DeviceNumber


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageNeeds:
    """What CRIU's images of one tree say of it; `descriptor_max` is the highest number of an open one, or -1."""

    ports: tuple[NeededPort, ...]
    names: tuple[NeededName, ...]
    features: tuple[KernelFeature, ...]
    huge_pages: tuple[NeededHugePages, ...]
    descriptor_max: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What a workload needs.

    `subject` is what people call it. `job` is the name that it will be filed under, None if that is free by nature.
    `architecture`, `cpu_features` and `criu_version` are "" or empty where the dump's host did not tell. `files` are
    those that must be there, as they were. `memory_bytes` is the memory that it fills, `staging_bytes` what a restore
    writes to the staging area before it begins, and `store_bytes` what the host's store grows by, 0 where it need not.
    `signers` are the public keys (hexadecimal) that vouch for it, None where nobody is asked to.
    """

    subject: str
    job: JobName | None
    architecture: str
    cpu_features: tuple[str, ...]
    criu_version: str
    pids: tuple[NeededPid, ...]
    files: tuple[InodeRecord, ...]
    mounts: tuple[ExternalMount, ...]
    volumes: tuple[NeededVolume, ...]
    ports: tuple[NeededPort, ...]
    networks: tuple[Network, ...]
    names: tuple[NeededName, ...]
    features: tuple[KernelFeature, ...]
    huge_pages: tuple[NeededHugePages, ...]
    cgroups: tuple[CgroupRecord, ...]
    descriptor_max: int
    memory_bytes: ByteCount
    staging_bytes: ByteCount
    store_bytes: ByteCount
    signers: tuple[str, ...] | None = None


def without_connections(needs: Needs) -> Needs:
    """What is needed if open TCP connections come back closed."""
    return replace(
        needs,
        ports=tuple(port for port in needs.ports if port.port),
        features=tuple(each for each in needs.features if each is not KernelFeature.NFTABLES),
    )


def needs_of(
    checkpoint_id: CheckpointId,
    checkpoint: Checkpoint,
    images: Iterable[ImageNeeds],
    *,
    job: JobName | None = None,
    new_pids: bool = False,
) -> Needs:
    """What a restore of this checkpoint needs.

    Args:
        checkpoint_id: Its id.
        checkpoint: What the manifest says.
        images: What its image sets say.
        job: The name that it will be filed under; None takes its own.
        new_pids: Whether it will get a PID namespace of its own.
    """
    trees = checkpoint.workload.trees
    looked = tuple(images)
    brought = {file.path for file in checkpoint.carried_files}
    brought |= {file.path for file in checkpoint.saved_files}
    volumes = tuple(volume.mountpoint for volume in checkpoint.volumes)
    own_pids = (KernelFeature.PID_NAMESPACE,) if new_pids else ()
    return Needs(
        subject=f"checkpoint {checkpoint_id[:12]}",
        job=job or checkpoint.job or JobName(checkpoint_id[:12]),
        architecture=checkpoint.host.architecture,
        cpu_features=checkpoint.host.cpu_features,
        criu_version=checkpoint.host.criu_version,
        pids=() if new_pids else needed_pids(trees),
        files=needed_files(checkpoint.inodes, brought, volumes),
        mounts=tuple(
            mount for mount in checkpoint.workload.external_mounts if mount.mountpoint not in volumes
        ),
        volumes=tuple(
            NeededVolume(mountpoint=each.mountpoint, filesystem=each.filesystem, device=each.device)
            for each in checkpoint.volumes
        ),
        ports=_unique(port for each in looked for port in each.ports),
        networks=checkpoint.networks,
        names=_unique(name for each in looked for name in each.names),
        features=_unique(
            feature
            for features in (namespace_features(trees), own_pids, *(each.features for each in looked))
            for feature in features
        ),
        huge_pages=add_huge_pages(pages for each in looked for pages in each.huge_pages),
        cgroups=checkpoint.workload.cgroups,
        descriptor_max=max((each.descriptor_max for each in looked), default=-1),
        memory_bytes=ByteCount(
            sum(
                file.size_bytes
                for each in checkpoint.image_sets
                for file in each.files
                if file.name.startswith(_PAGES)
            )
        ),
        staging_bytes=ByteCount(
            checkpoint.image_bytes
            + checkpoint.saved_bytes
            + sum(file.content.size_bytes for file in checkpoint.carried_files)
        ),
        store_bytes=ByteCount(0),
    )


def needed_pids(trees: Iterable[Tree]) -> tuple[NeededPid, ...]:
    """The pids and thread ids of trees that bring no PID namespace along."""
    return tuple(
        NeededPid(pid=thread, name=process.name)
        for tree in trees
        if not tree.owns("pid")
        for process in tree.processes
        for thread in process.threads
    )


def needed_files(
    inodes: Iterable[InodeRecord], brought: set[str], volumes: tuple[str, ...] = ()
) -> tuple[InodeRecord, ...]:
    """The files that must be there: not those that a restore brings along, in whichever way."""
    below = tuple(place.rstrip("/") + "/" for place in volumes)
    return tuple(
        inode
        for inode in inodes
        if not inode.deleted
        and inode.kind in COMPARED_KINDS
        and inode.path.startswith("/")
        and inode.path not in brought
        and not (inode.path + "/").startswith(below)
    )


def namespace_features(trees: Iterable[Tree]) -> tuple[KernelFeature, ...]:
    """What the kernel must have for the namespaces that a restore makes: always a time namespace."""
    own = tuple(feature for tree in trees for kind, feature in _OWN_NAMESPACES.items() if tree.owns(kind))
    return _unique((KernelFeature.TIME_NAMESPACE, *own))


def add_huge_pages(pages: Iterable[NeededHugePages]) -> tuple[NeededHugePages, ...]:
    """The sum for each size of page."""
    counts: dict[ByteCount, int] = {}
    for each in pages:
        counts[each.page_bytes] = counts.get(each.page_bytes, 0) + each.count
    return tuple(NeededHugePages(page_bytes=size, count=count) for size, count in sorted(counts.items()))


def _unique(values: Iterable[Value]) -> tuple[Value, ...]:
    return tuple(dict.fromkeys(values))
