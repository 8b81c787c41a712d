"""Sockets that CRIU cannot dump: by their protocol, or by the state that their connection is in.

Source: criu/sk-inet.c, can_dump_ipproto() and can_dump_inet_sk(); criu/sockets.c; proc_pid_net_tcp(5);
net/socket.c for the extended attribute that tells a socket's protocol.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
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


def about_connections(snapshot: Snapshot, *, tcp_established: bool) -> Iterator[str]:
    """TCP connections of the workload that cannot be dumped as they are now."""
    sockets = _sockets(snapshot)
    if not sockets:
        return
    namespaces = {
        facts.namespaces["net"]: pid for pid, facts in snapshot.processes.items() if not facts.ended
    }
    for pid in namespaces.values():
        for table in ("tcp", "tcp6"):
            with suppress(OSError), open(f"/proc/{pid}/net/{table}", encoding="ascii") as stream:
                next(stream, None)
                for line in stream:
                    _, _, _, state, queues, _, _, _, _, inode, *_ = line.split()
                    if inode in sockets:
                        yield from _about(*sockets[inode], state, queues, tcp_established=tcp_established)


def _about(facts: ProcessFacts, fd: str, state: str, queues: str, *, tcp_established: bool) -> Iterator[str]:
    if state == _LISTENS:
        # Of a listening socket the second number counts the connections that wait to be accepted.
        if int(queues.partition(":")[2], 16):
            yield f"{facts.label} has not accepted a connection at fd {fd} yet: try again in a moment"
    elif state != _CLOSED and not tcp_established:
        yield (
            f"{facts.label} holds fd {fd}, an open TCP connection: give --tcp-established, "
            "which freezes the connection with it, or let it be closed first"
        )


def _sockets(snapshot: Snapshot) -> Sockets:
    found: Sockets = {}
    for pid, holdings in snapshot.holdings.items():
        for hold in holdings.holds:
            if hold.kind is RoleKind.FD and hold.target.startswith("socket:["):
                fd = hold.detail.partition(" ")[0]
                found.setdefault(hold.target[8:-1], (snapshot.processes[pid], fd))
    return found
