"""What a workload that runs needs of a host, read without stopping it.

Rules: what a dump would record is read as the dump reads it. A socket is looked at through a copy of its descriptor,
for an instant. What ends meanwhile needs nothing.
Source: pidfd_getfd(2), socket(7), tcp(7), unix(7), proc_pid_smaps_rollup(5).
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

from ckpt.errors import CkptError
from ckpt.host import cgroup_settings, mounts
from ckpt.host.carried import is_shared_memory
from ckpt.host.criu import engine
from ckpt.host.criu.locate import find_criu
from ckpt.host.hostfacts import read_host_facts
from ckpt.host.inspection import records, snapshot
from ckpt.host.inspection.details import DetailReader, kind_of
from ckpt.host.inspection.digests import DigestCache, Result, Wanted
from ckpt.host.inspection.holdings import Hold
from ckpt.host.inspection.records import HeldFile
from ckpt.host.inspection.snapshot import Snapshot
from ckpt.host.jobs import JobRegistry
from ckpt.host.linux import pidfd_getfd
from ckpt.host.network.reading import networks_of
from ckpt.host.process_table import stat_of
from ckpt.host.virtual.registry import table_for
from ckpt.host.volumes.adapter import HostVolumes
from ckpt.model.inodes import DigestState, FileKind, Identity, InodeRecord, RoleKind
from ckpt.model.needs import (
    KernelFeature,
    NeededHugePages,
    NeededName,
    NeededPort,
    NeededVolume,
    Needs,
    Protocol,
    add_huge_pages,
    namespace_features,
    needed_files,
    needed_pids,
)
from ckpt.model.target import Target
from ckpt.units import ByteCount, Pid

DIGEST_LIMIT: Final = ByteCount(64 << 20)
"""Of files above this only the size is compared."""

_IMAGES_ABOVE_MEMORY: Final = ByteCount(4 << 20)
"""What CRIU's other images take, at most, for a workload of usual size."""

_BLOCK_BYTES: Final = 512
"""The unit of st_blocks."""

_TCP_CLOSE: Final = 7
_TCP_LISTEN: Final = 10
_IP_FREEBIND: Final = 15
_SECCOMP_FILTER: Final = 2
_HUGE: Final = b"/anon_hugepage"
_PROTOCOLS: Final = {
    socket.IPPROTO_TCP: Protocol.TCP,
    socket.IPPROTO_UDP: Protocol.UDP,
    socket.IPPROTO_UDPLITE: Protocol.UDP_LITE,
}


def needs_of_target(target: Target, state: str, *, digest_limit: ByteCount = DIGEST_LIMIT) -> Needs:
    """What a restore of this workload elsewhere needs.

    Args:
        target: The workload.
        state: The state directory, which has the cache of digests.
        digest_limit: Of larger files only the size is compared.
    """
    taken = snapshot.take(snapshot.members_of(target), target.cgroup, None)
    facts = read_host_facts("", "")
    memory = ByteCount(sum(map(_memory_of, taken.processes)))
    looked = list(_sockets(taken))
    registry = JobRegistry(state)
    volumes = HostVolumes(state, registry).images(target)
    places = frozenset(record.mountpoint for record, _ in volumes)
    return Needs(
        subject=str(target.ref),
        job=target.job,
        architecture=facts.architecture,
        cpu_features=facts.cpu_features,
        criu_version=_criu_version(),
        pids=needed_pids(taken.trees),
        files=needed_files(_records(taken, state, digest_limit), set(), tuple(places)),
        mounts=tuple(
            mount
            for tree in taken.trees
            for mount in mounts.external_mounts(
                tree.root, [process.pid for process in tree.processes], registry.host_mounts_of(tree.root)
            )
            if mount.mountpoint not in places
        ),
        volumes=tuple(
            NeededVolume(mountpoint=each.mountpoint, filesystem=each.filesystem, device=each.device)
            for each, _ in volumes
        ),
        ports=tuple(dict.fromkeys(each for each in looked if isinstance(each, NeededPort))),
        networks=networks_of(taken.trees),
        names=tuple(dict.fromkeys(each for each in looked if isinstance(each, NeededName))),
        features=tuple(
            dict.fromkeys(
                (
                    *namespace_features(taken.trees),
                    *_features(taken),
                    *(each for each in looked if isinstance(each, KernelFeature)),
                )
            )
        ),
        huge_pages=add_huge_pages(_huge_pages(taken)),
        cgroups=cgroup_settings.record_cgroups(taken.processes.keys()),
        descriptor_max=max(
            (int(hold.detail.partition(" ")[0]) for hold in _holds(taken) if hold.kind is RoleKind.FD),
            default=-1,
        ),
        memory_bytes=memory,
        staging_bytes=ByteCount(
            memory
            + _IMAGES_ABOVE_MEMORY
            + sum(os.stat(image).st_blocks * _BLOCK_BYTES for _, image in volumes)
        ),
        store_bytes=ByteCount(0),
    )


def _holds(taken: Snapshot) -> Iterator[Hold]:
    return (hold for each in taken.holdings.values() for hold in each.holds)


def _records(taken: Snapshot, state: str, limit: ByteCount) -> Iterator[InodeRecord]:
    reader = DetailReader()
    files = records.held_files(_holds(taken))
    table = table_for(state, [stat.ref for pid in taken.processes if (stat := stat_of(pid)) is not None])
    details = {
        key: reader.read(
            held.first,
            taken.processes[held.first.pid].namespaces.get("mnt", 0),
            is_program=held.is_program,
        )
        for key, held in files.items()
    }
    settled = [key for key, held in files.items() if _is_settled(held)]
    wanted = [
        Wanted(
            path=files[key].first.path
            if details[key].filesystem.mountpoint
            else f"/proc/{files[key].first.pid}/root{files[key].first.path}",
            device=files[key].first.status.st_dev,
            inode=files[key].first.status.st_ino,
            generation=details[key].generation or 0,
            size=files[key].first.status.st_size,
            mtime_ns=files[key].first.status.st_mtime_ns,
            ctime_ns=files[key].first.status.st_ctime_ns,
        )
        for key in settled
    ]
    cache = DigestCache(f"{state}/digests.sqlite")
    digests: dict[object, Result] = dict(zip(settled, cache.take(wanted, limit), strict=True))
    for key, held in files.items():
        if is_shared_memory(held):
            continue
        yield records.record(
            held,
            details[key],
            *digests.get(key, (None, DigestState.CHANGED)),
            shown=table.shown if table else _as_it_is,
        )


def _is_settled(held: HeldFile) -> bool:
    """Whether nobody of the workload writes to it: else its content is another one at each look."""
    writes = any(role.kind is RoleKind.FD and "O_RDONLY" not in role.detail for role in held.roles)
    return not (
        writes
        or held.is_written_by_map
        or held.first.deleted
        or kind_of(held.first.status.st_mode) is not FileKind.REGULAR
    )


def _as_it_is(identity: Identity) -> Identity:
    return identity


def _sockets(taken: Snapshot) -> Iterator[NeededPort | NeededName | KernelFeature]:
    """The ports and names that its sockets are bound to, and what the kernel must have for them."""
    own_net = {process.pid for tree in taken.trees if tree.owns("net") for process in tree.processes}
    seen: set[str] = set()
    for pid, holdings in taken.holdings.items():
        held = [hold for hold in holdings.holds if hold.target.startswith("socket:[")]
        if not held or pid in own_net:
            continue
        with suppress(OSError):
            pidfd = os.pidfd_open(pid)
            try:
                for hold in held:
                    if hold.target not in seen:
                        seen.add(hold.target)
                        with suppress(OSError):
                            fd = pidfd_getfd(pidfd, int(hold.detail.partition(" ")[0]))
                            with socket.socket(fileno=fd) as copy:
                                yield from _needs_of_socket(copy, pid)
            finally:
                os.close(pidfd)


def _needs_of_socket(each: socket.socket, pid: Pid) -> Iterator[NeededPort | NeededName | KernelFeature]:
    if each.family == socket.AF_UNIX:
        yield from _name(each, pid)
    if each.family not in (socket.AF_INET, socket.AF_INET6) or each.proto not in _PROTOCOLS:
        return
    is_v6 = each.family == socket.AF_INET6
    if is_v6:
        yield KernelFeature.IPV6
    address, port = each.getsockname()[:2]
    is_connection = False
    if each.proto == socket.IPPROTO_TCP:
        state = each.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
        is_connection = state not in (_TCP_CLOSE, _TCP_LISTEN)
    if is_connection:
        yield KernelFeature.NFTABLES
    if port:
        is_free = bool(each.getsockopt(socket.IPPROTO_IP, _IP_FREEBIND))
        yield NeededPort(
            protocol=_PROTOCOLS[each.proto],
            address=address.partition("%")[0],
            # Repair mode takes the port whoever else has it (soccr/soccr.c).
            port=0 if is_connection else port,
            only_v6=is_v6 and bool(each.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)),
            foreign_address=is_free or (is_v6 and not is_connection),
        )


def _name(each: socket.socket, pid: Pid) -> Iterator[NeededName]:
    name = each.getsockname()
    if not name:
        return
    if each.type != socket.SOCK_DGRAM:
        with suppress(OSError):
            each.getpeername()
            return  # an accepted connection shows its listener's name
    if isinstance(name, bytes):
        yield NeededName(name=os.fsdecode(name.replace(b"\0", b"@")))
        return
    directory = os.readlink(f"/proc/{pid}/cwd")
    yield NeededName(name=os.path.normpath(os.path.join(directory, name)))


def _features(taken: Snapshot) -> Iterator[KernelFeature]:
    if any(facts.process.seccomp == _SECCOMP_FILTER for facts in taken.processes.values()):
        yield KernelFeature.SECCOMP_FILTER
    # The C library has registered every thread since glibc 2.35.
    yield KernelFeature.RSEQ


def _huge_pages(taken: Snapshot) -> Iterator[NeededHugePages]:
    sizes = {
        hold.pid: hold.status.st_blksize
        for hold in _holds(taken)
        if hold.kind is RoleKind.MAP and hold.target.startswith(os.fsdecode(_HUGE))
    }
    for pid, size in sizes.items():
        for line in taken.holdings[pid].maps_text.splitlines():
            if _HUGE in line:
                start, _, end = line.split(b" ", 1)[0].partition(b"-")
                yield NeededHugePages(
                    page_bytes=ByteCount(size), count=(int(end, 16) - int(start, 16)) // size
                )


def _memory_of(pid: Pid) -> int:
    """Its own memory and its share of what it shares, without pages of files."""
    with suppress(OSError), open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as stream:
        return sum(
            int(line.split()[1]) << 10 for line in stream if line.startswith(("Pss_Anon:", "Pss_Shmem:"))
        )
    return 0


def _criu_version() -> str:
    with suppress(CkptError):
        return str(engine.version(find_criu()))
    return ""
