"""Sockets that CRIU cannot dump: by their protocol, or by the state that their connection is in.

Source: criu/sk-inet.c, can_dump_ipproto() and can_dump_inet_sk(); criu/sockets.c; proc_pid_net_tcp(5);
net/socket.c for the extended attribute that tells a socket's protocol.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from ckpt.host.inspection.processes import ProcessFacts
from ckpt.host.inspection.snapshot import Snapshot
from ckpt.model.inodes import RoleKind

_PROTOCOL: Final = "system.sockprotoname"
_NOT_DUMPABLE: Final = {
    "MPTCP": ": let it open plain TCP (in Go, GODEBUG=multipathtcp=0)",
    "MPTCPv6": ": let it open plain TCP (in Go, GODEBUG=multipathtcp=0)",
    "AF_VSOCK": ", which CRIU cannot dump",
    "XDP": ", which CRIU cannot dump",
}
_LISTENS, _CLOSED = "0A", "07"

Sockets = dict[str, tuple[ProcessFacts, str]]
"""Who holds a socket, and by which descriptor, by its inode number."""


def about_protocols(snapshot: Snapshot) -> Iterator[str]:
    """Sockets of protocols that CRIU does not know; protocols that were not tried are let through."""
    for facts, fd in _sockets(snapshot).values():
        with suppress(OSError):
            attribute = os.getxattr(f"/proc/{facts.pid}/fd/{fd}", _PROTOCOL)
            name = attribute.rstrip(b"\0").decode(errors="replace")
            if name in _NOT_DUMPABLE:
                yield f"{facts.label} holds fd {fd}, a socket of {name}{_NOT_DUMPABLE[name]}"


@dataclass(frozen=True, slots=True)
class TcpSocket:
    """A TCP socket of the workload: who holds it, by which descriptor, and its row in /proc/PID/net/tcp."""

    facts: ProcessFacts
    fd: str
    state: str
    queues: str


def tcp_sockets(snapshot: Snapshot) -> tuple[TcpSocket, ...]:
    """The TCP sockets of the workload, each network namespace's tables read once."""
    sockets = _sockets(snapshot)
    if not sockets:
        return ()
    namespaces = {
        facts.namespaces["net"]: pid for pid, facts in snapshot.processes.items() if not facts.ended
    }
    found: list[TcpSocket] = []
    for pid in namespaces.values():
        for table in ("tcp", "tcp6"):
            with suppress(OSError), open(f"/proc/{pid}/net/{table}", encoding="ascii") as stream:
                next(stream, None)
                for line in stream:
                    _, _, _, state, queues, _, _, _, _, inode, *_ = line.split()
                    if inode in sockets:
                        found.append(TcpSocket(*sockets[inode], state, queues))
    return tuple(found)


def about_connections(sockets: tuple[TcpSocket, ...]) -> Iterator[str]:
    """Open connections, which a dump takes along only when told to."""
    for socket in sockets:
        if socket.state not in (_LISTENS, _CLOSED):
            yield (
                f"{socket.facts.label} holds fd {socket.fd}, an open TCP connection: give --tcp-established, "
                "which freezes the connection with it, or let it be closed first"
            )


def about_backlogs(sockets: tuple[TcpSocket, ...]) -> Iterator[str]:
    """Connections that wait to be accepted: they pass, as the program goes on."""
    for socket in sockets:
        # Of a listening socket the second number counts them.
        if socket.state == _LISTENS and int(socket.queues.partition(":")[2], 16):
            yield f"{socket.facts.label} has not accepted a connection at fd {socket.fd} yet"


def _sockets(snapshot: Snapshot) -> Sockets:
    found: Sockets = {}
    for pid, holdings in snapshot.holdings.items():
        for hold in holdings.holds:
            if hold.kind is RoleKind.FD and hold.target.startswith("socket:["):
                fd = hold.detail.partition(" ")[0]
                found.setdefault(hold.target[8:-1], (snapshot.processes[pid], fd))
    return found
