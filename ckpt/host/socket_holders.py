"""Who has a port, or the name of a unix socket, on this host: for messages, and only when something is in the way.

Rule: what another user's process holds may not be seen, and what has just gone has no holder: both are None.
Source: sock_diag(7); proc_pid_fd(5).
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable
from contextlib import suppress
from typing import Final

from ckpt.host.diag_messages import InetSocket, State
from ckpt.host.process_table import ProcessStat, all_processes, stat_of
from ckpt.host.sock_diag import sockets_of
from ckpt.model.needs import NeededPort
from ckpt.units import InodeNumber, Pid

_ANY: Final = frozenset(("0.0.0.0", "::"))  # noqa: S104 - compared, not bound


def inet_sockets() -> tuple[InetSocket, ...]:
    """The bound TCP, UDP and raw sockets of this network namespace; none where the kernel does not tell."""
    with suppress(OSError):
        sockets = sockets_of(Pid(os.getpid()), ("inet",))
        return tuple(each for inode in sockets.raw["inet"] if inode and (each := sockets.inet(inode)))
    return ()


def sharing(port: NeededPort, sockets: Iterable[InetSocket]) -> list[InetSocket]:
    """Those of the sockets that have this port, at an address that meets the needed one; listening ones first."""
    found = [
        each
        for each in sockets
        if each.local_port == port.port
        and not (port.only_v6 and ":" not in each.local)
        and (each.local == port.address or not _ANY.isdisjoint((each.local, port.address)))
    ]
    return sorted(found, key=lambda each: each.state != State.LISTEN)


def unix_names() -> dict[str, InodeNumber]:
    """The names of the unix sockets of this network namespace, abstract ones as /proc/net/unix shows them."""
    found: dict[str, InodeNumber] = {}
    with suppress(OSError):
        sockets = sockets_of(Pid(os.getpid()), ("unix",))
        for inode in sockets.raw["unix"]:
            each = sockets.unix(inode)
            # A connection that was accepted shows its listener's name.
            if (
                each is not None
                and each.name
                and not (each.state == State.ESTABLISHED and _is_stream(each.type))
            ):
                found[_shown(each.name)] = inode
    return found


def holder_of(inode: InodeNumber) -> ProcessStat | None:
    """A process that has the socket open."""
    wanted = f"socket:[{inode}]"
    for pid in all_processes():
        with suppress(OSError):
            for name in os.listdir(f"/proc/{pid}/fd"):
                with suppress(OSError):
                    if os.readlink(f"/proc/{pid}/fd/{name}") == wanted:
                        return stat_of(pid)
    return None


def _is_stream(kind: int) -> bool:
    return kind != socket.SOCK_DGRAM


def _shown(name: bytes) -> str:
    if name.startswith(b"\0"):
        return os.fsdecode(name.replace(b"\0", b"@"))
    return os.fsdecode(name.rstrip(b"\0"))
