"""Rules over needs: mounts, volumes, ports and the names of unix sockets.

Rule: whether a port is free is asked from the kernel, by binding to it for an instant in the way that CRIU does; who
has it is looked up only then.
Source: criu/sk-inet.c (open_inet_sk, inet_bind: SO_REUSEADDR and SO_REUSEPORT are set for every socket, IP_FREEBIND
for those of IPv6); criu/sk-unix.c (unlink_sk removes a socket's name, whoever has it, and no other file).
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Final

from ckpt.host import mounts, socket_holders
from ckpt.host.diag_messages import InetSocket, State
from ckpt.host.preflight.needs_rule import Here, NeedRule
from ckpt.host.preflight.rule import Found
from ckpt.host.volumes import mounting
from ckpt.host.volumes.book import Book
from ckpt.host.volumes.places import refuse_place
from ckpt.model.findings import Severity
from ckpt.model.needs import NeededPort, Needs, Protocol
from ckpt.units import InodeNumber

_IP_FREEBIND: Final = 15
_KINDS: Final = {
    Protocol.TCP: (socket.SOCK_STREAM, socket.IPPROTO_TCP),
    Protocol.UDP: (socket.SOCK_DGRAM, socket.IPPROTO_UDP),
    Protocol.UDP_LITE: (socket.SOCK_DGRAM, socket.IPPROTO_UDPLITE),
}


_SHARED: Final = "Stop the other one first, or connections will reach one or the other."


def _mounts(needs: Needs, _here: Here) -> Iterator[Found]:
    held = frozenset(record.path for record in needs.files)
    for mount in needs.mounts:
        for sentence in mounts.mount_problems((mount,), held):
            yield Found(pid=None, subject=mount.mountpoint, message=sentence)


def _volumes(needs: Needs, here: Here) -> Iterator[Found]:
    book = Book(here.state)
    former = {record.mountpoint: record for record in book.of(needs.job)} if needs.job else {}
    own = {
        place
        for place, record in former.items()
        if needs.job and mounting.device_of(book.directory(needs.job), record) is not None
    }
    taken = [record.mountpoint for job in book.jobs() if job != needs.job for record in book.of(job)]
    for volume in needs.volumes:
        reason = refuse_place(volume.mountpoint, state=here.state, taken=taken, own=own)
        if volume.filesystem not in mounting.FILESYSTEMS:
            reason = f"{volume.filesystem} is not a file system of volumes"
        if not os.path.exists("/dev/loop-control"):
            reason = "this host has no loop devices (/dev/loop-control)"
        if reason:
            yield Found(
                pid=None,
                subject=volume.mountpoint,
                message=f"the volume at {volume.mountpoint} cannot be mounted: {reason}",
            )
        taken.append(volume.mountpoint)


def _ports(needs: Needs, _here: Here) -> Iterator[Found]:
    sockets = socket_holders.inet_sockets() if needs.ports else ()
    for port in needs.ports:
        number = _refusal(port)
        shared = socket_holders.sharing(port, sockets)
        if number == errno.EADDRINUSE:
            yield _port(port, shared, "is taken")
        elif number == errno.EADDRNOTAVAIL:
            yield Found(
                pid=None,
                subject=str(port),
                message=f"this host has no address {port.address}, which "
                + (
                    "a socket of the workload is bound to"
                    if port.port
                    else "the workload has a connection from"
                ),
                remedy="Give the host this address, or run the workload in a network of its own (ckpt run --net)"
                + ("." if port.port else ", or let its connections be closed (--tcp-close)."),
            )
        elif number not in (0, errno.EAFNOSUPPORT, errno.EPERM):
            yield Found(
                pid=None, subject=str(port), message=f"{port} cannot be bound ({os.strerror(number)})"
            )
        elif number == 0 and any(_listens_too(each, port) for each in shared):
            # The kernel lets several listen that allowed it when they were bound, as CRIU does for what it restores.
            yield replace(_port(port, shared, "is listened on"), severity=Severity.WARNING, remedy=_SHARED)


def _listens_too(each: InetSocket, port: NeededPort) -> bool:
    """Whether connections to the port could reach this socket; one of IPv6 may be for IPv6 alone."""
    is_v6 = ":" in each.local
    return port.protocol is Protocol.TCP and each.state == State.LISTEN and is_v6 == port.is_v6


def _port(port: NeededPort, shared: list[InetSocket], what: str) -> Found:
    holder = next((found for each in shared if (found := socket_holders.holder_of(each.inode))), None)
    return Found(
        pid=holder.pid if holder else None,
        subject=str(port),
        message=f"{port} {what}" + (f" by {holder.name} (process {holder.pid})" if holder else ""),
    )


def _refusal(port: NeededPort) -> int:
    """The error of binding as CRIU does, 0 for none."""
    kind, protocol = _KINDS[port.protocol]
    try:
        with socket.socket(socket.AF_INET6 if port.is_v6 else socket.AF_INET, kind, protocol) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if port.is_v6:
                trial.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(port.only_v6))
            if port.foreign_address:
                trial.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
            trial.bind((port.address, port.port))
    except OSError as error:
        return error.errno or errno.EINVAL
    return 0


def _names(needs: Needs, _here: Here) -> Iterator[Found]:
    bound = socket_holders.unix_names() if needs.names else {}
    for needed in needs.names:
        path = needed.name
        if needed.is_abstract:
            if path in bound:
                yield _taken(path, bound[path])
            continue
        mode = 0
        with suppress(OSError, ValueError):
            mode = os.lstat(path).st_mode
        if mode and not stat.S_ISSOCK(mode):
            yield Found(
                pid=None,
                subject=path,
                message=f"{path} is a file here, where a unix socket of the workload must be bound",
                remedy="Move the file away.",
            )
        elif mode and path in bound:
            holder = socket_holders.holder_of(bound[path])
            yield Found(
                pid=holder.pid if holder else None,
                subject=path,
                message=f"{path} is the socket of {holder.name if holder else 'another process'}"
                + (f" (process {holder.pid})" if holder else "")
                + ", and the restore would take its name",
                severity=Severity.WARNING,
                remedy="Stop the other one first, or its clients will reach the restored workload.",
            )


def _name_directories(needs: Needs, _here: Here) -> Iterator[Found]:
    for needed in needs.names:
        directory = os.path.dirname(needed.name)
        if not needed.is_abstract and not os.path.isdir(directory):
            yield Found(
                pid=None,
                subject=needed.name,
                message=f"{directory} is missing here, where a unix socket of the workload must be bound",
            )


def _taken(name: str, inode: InodeNumber) -> Found:
    holder = socket_holders.holder_of(inode)
    return Found(
        pid=holder.pid if holder else None,
        subject=name,
        message=f"the unix socket {name} is taken"
        + (f" by {holder.name} (process {holder.pid})" if holder else ""),
    )


RULES: Final = (
    NeedRule(
        name="mount-missing",
        severity=Severity.BLOCKER,
        title="Mounts that the workload shares with its host",
        effect="The restore is refused, or files are not found.",
        remedy="Mount it there.",
        find=_mounts,
    ),
    NeedRule(
        name="volume-place",
        severity=Severity.BLOCKER,
        title="Places of volumes that are in use",
        effect="The restore is refused.",
        remedy="A volume needs its place for itself: a directory that is empty, or does not exist.",
        find=_volumes,
    ),
    NeedRule(
        name="port-taken",
        severity=Severity.BLOCKER,
        title="Ports that are in use, and addresses that this host lacks",
        effect="CRIU cannot bind the socket.",
        remedy="Stop the program that has the port, or run the workload in a network namespace of its own.",
        find=_ports,
    ),
    NeedRule(
        name="unix-name-taken",
        severity=Severity.BLOCKER,
        title="Names of unix sockets that are in use",
        effect="CRIU cannot bind an abstract name that is in use, nor over a file; it takes the name of another socket.",
        remedy="Stop the program that has the name.",
        find=_names,
    ),
    NeedRule(
        name="unix-directory",
        severity=Severity.BLOCKER,
        title="Directories of unix sockets that are missing",
        effect="CRIU cannot bind the name.",
        remedy="Make the directory.",
        find=_name_directories,
    ),
)
