"""The sockets of a workload as its rules see them: who holds each, of which protocol it is, what the kernel tells.

Rule: netlink is asked once in each network namespace, and only for the families that the workload has.
Source: net/socket.c for the extended attribute that tells a socket's protocol; sock_diag(7).
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Final

from ckpt.host.diag_messages import InetSocket, NetlinkSocket, PacketSocket, UnixSocket
from ckpt.host.inspection.holdings import Hold
from ckpt.host.inspection.processes import ProcessFacts
from ckpt.host.preflight.facts import Facts, fd_of, named, subject
from ckpt.host.sock_diag import Sockets, sockets_of
from ckpt.host.socket_options import shared_socket
from ckpt.units import InodeNumber

_ATTRIBUTE: Final = "system.sockprotoname"
_FAMILIES: Final = {
    "UNIX": "unix",
    "UNIX-STREAM": "unix",
    "NETLINK": "netlink",
    "PACKET": "packet",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldSocket:
    """A socket and its first holder; `protocol` is the kernel's name, "" where it does not tell."""

    task: ProcessFacts
    hold: Hold
    protocol: str

    @property
    def inode(self) -> InodeNumber:
        """By which the kernel's tables know it."""
        return InodeNumber(self.hold.status.st_ino)

    @property
    def named(self) -> str:
        """How a sentence about it begins."""
        return named(self.task, self.hold)

    @property
    def subject(self) -> str:
        """How it is called."""
        return subject(self.hold)


def held_sockets(facts: Facts) -> tuple[HeldSocket, ...]:
    """The sockets of the workload, each once."""
    return facts.once(_held)


@contextmanager
def opened(held: HeldSocket) -> Iterator[socket.socket]:
    """A duplicate of it, to be asked for its options.

    Raises:
        OSError: it was closed meanwhile.
    """
    with shared_socket(held.task.pid, fd_of(held.hold)) as shared:
        yield shared


def inet_sockets(facts: Facts) -> Iterator[tuple[HeldSocket, InetSocket]]:
    """Those of TCP, UDP and raw IP that are bound or connected."""
    for held in held_sockets(facts):
        if held.protocol.startswith(("TCP", "UDP", "RAW")):
            told = diagnosed(facts, held).inet(held.inode)
            if told is not None:
                yield held, told


def unix_sockets(facts: Facts) -> Iterator[tuple[HeldSocket, UnixSocket]]:
    """Those of the unix family."""
    for held in held_sockets(facts):
        if held.protocol.startswith("UNIX"):
            told = diagnosed(facts, held).unix(held.inode)
            if told is not None:
                yield held, told


def packet_sockets(facts: Facts) -> Iterator[tuple[HeldSocket, PacketSocket]]:
    """Those that see the packets of a network device."""
    for held in held_sockets(facts):
        if held.protocol == "PACKET":
            told = diagnosed(facts, held).packet(held.inode)
            if told is not None:
                yield held, told


def netlink_sockets(facts: Facts) -> Iterator[tuple[HeldSocket, NetlinkSocket]]:
    """Those to the kernel."""
    for held in held_sockets(facts):
        if held.protocol == "NETLINK":
            told = diagnosed(facts, held).netlink(held.inode)
            if told is not None:
                yield held, told


def is_told(facts: Facts, held: HeldSocket) -> bool:
    """Whether the kernel tells of it in its holder's network namespace, or tells nothing of its kind at all."""
    told = diagnosed(facts, held)
    family = _FAMILIES.get(held.protocol, "inet")
    return family in told.missing or family not in told.raw or held.inode in told.raw[family]


def diagnosed(facts: Facts, held: HeldSocket) -> Sockets:
    """What the kernel tells of the sockets in the network namespace of a socket's holder."""
    return facts.once(_of_namespaces).get(held.task.namespaces["net"], _NOTHING)


_NOTHING: Final = Sockets(raw={})


def _held(facts: Facts) -> tuple[HeldSocket, ...]:
    found: dict[int, HeldSocket] = {}
    for task in facts.tasks:
        for hold in facts.descriptors(task):
            if hold.target.startswith("socket:[") and hold.status.st_ino not in found:
                found[hold.status.st_ino] = HeldSocket(task=task, hold=hold, protocol=_protocol(hold))
    return tuple(found.values())


def _of_namespaces(facts: Facts) -> dict[int, Sockets]:
    families: dict[int, set[str]] = {}
    tasks: dict[int, ProcessFacts] = {}
    for held in held_sockets(facts):
        namespace = held.task.namespaces["net"]
        tasks.setdefault(namespace, held.task)
        families.setdefault(namespace, set()).add(_FAMILIES.get(held.protocol, "inet"))
    found: dict[int, Sockets] = {}
    for namespace, task in tasks.items():
        with suppress(OSError):
            found[namespace] = sockets_of(task.pid, tuple(sorted(families[namespace])))
    return found


def _protocol(hold: Hold) -> str:
    with suppress(OSError):
        return os.getxattr(hold.link, _ATTRIBUTE).rstrip(b"\0").decode(errors="replace")
    return ""
