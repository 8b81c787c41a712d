"""Let the peers of connections that came back send again at once what they lost meanwhile, not after their back-off.

What a peer has sent into the pause it repeats after 0.2, 0.6, 1.4, 3 s …, whether or not the other side is back. A
message that the host could not be reached takes one doubling back (RFC 6069, "TCP-LCD"), as if a router had sent it
while the connection was down: some of them let it try again now. The peer's program sees no error: the kernel forgets it with the
next acknowledgement. Peers that do not know that are no worse off.

Rules:
- The tasks stand still: their sockets are in repair mode for an instant, in which the numbers can be read. Leaving it
  sends a probe, which tells the peer that we are here.
- All of it is help, not a condition.
Source: net/ipv4/tcp_ipv4.c (tcp_ld_RTO_revert, tcp_v4_err), net/ipv6/tcp_ipv6.c (tcp_v6_err); net/ipv4/tcp.c
(TCP_REPAIR, which forgets SO_REUSEADDR); RFC 792, RFC 4443.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import struct
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Final

from ckpt.host import linux
from ckpt.host.network.namespace import within
from ckpt.units import Pid

_TCP_REPAIR: Final = 19
_TCP_REPAIR_QUEUE: Final = 20
_TCP_QUEUE_SEQ: Final = 21
_RECEIVED, _NO_QUEUE = 1, 0
_ESTABLISHED: Final = 1
_TIMES: Final = 8
"""As many doublings as an hour's pause has made; more than are needed do nothing."""

_CONNECTIONS_MAX: Final = 4096
_TCP: Final = 6
_ICMP_HOST_UNREACHABLE: Final = struct.Struct("!BBHI")
_V4: Final = struct.Struct("!BBHHHBBH4s4s")
_V6: Final = struct.Struct("!IHBB16s16s")
_SEGMENT: Final = struct.Struct("!HHI")


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """One connection: who the peer is, and the number of the byte that is expected of it."""

    local: str
    local_port: int
    peer: str
    peer_port: int
    expected: int

    @property
    def is_v6(self) -> bool:
        """Whether it runs over IPv6."""
        return ":" in self.peer


def wake_peers(namespace: int, pids: Iterable[Pid]) -> None:
    """Tell the peers of the connections that these processes, which stand still, have in the namespace."""
    connections = list(dict.fromkeys(_connections(pids)))[:_CONNECTIONS_MAX]
    with ExitStack() as opened:
        ways: dict[bool, socket.socket] = {}
        for is_v6 in {each.is_v6 for each in connections}:
            with suppress(OSError), within(namespace):
                ways[is_v6] = opened.enter_context(
                    socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
                    if is_v6
                    else socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
                )
        for each in connections:
            with suppress(OSError, KeyError):
                way = ways[each.is_v6]
                way.setblocking(False)
                way.bind((each.local, 0))
                for _ in range(_TIMES):
                    way.sendto(unreachable(each), (each.peer, 0))


def unreachable(connection: Connection) -> bytes:
    """The message that what the peer sent last could not reach the host; of IPv6 the kernel fills the checksum in."""
    segment = _SEGMENT.pack(connection.peer_port, connection.local_port, connection.expected)
    source = ipaddress.ip_address(connection.peer).packed
    target = ipaddress.ip_address(connection.local).packed
    if connection.is_v6:
        return (
            _ICMP_HOST_UNREACHABLE.pack(1, 0, 0, 0)
            + _V6.pack(6 << 28, 20, _TCP, 64, source, target)
            + segment
        )
    inner = _V4.pack(0x45, 0, 40, 0, 0, 64, _TCP, 0, source, target) + segment
    checksum = _checksum(_ICMP_HOST_UNREACHABLE.pack(3, 1, 0, 0) + inner)
    return _ICMP_HOST_UNREACHABLE.pack(3, 1, checksum, 0) + inner


def _connections(pids: Iterable[Pid]) -> Iterator[Connection]:
    for pid in pids:
        with suppress(OSError):
            pidfd = os.pidfd_open(pid)
            try:
                for name in os.listdir(f"/proc/{pid}/fd"):
                    with suppress(OSError):
                        if os.readlink(f"/proc/{pid}/fd/{name}").startswith("socket:"):
                            with socket.socket(fileno=linux.pidfd_getfd(pidfd, int(name))) as shared:
                                yield from _looked_at(shared)
            finally:
                os.close(pidfd)


def _looked_at(shared: socket.socket) -> Iterator[Connection]:
    if shared.type != socket.SOCK_STREAM or shared.family not in (socket.AF_INET, socket.AF_INET6):
        return
    if shared.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] != _ESTABLISHED:
        return
    local, peer = shared.getsockname(), shared.getpeername()
    reuse = shared.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)
    shared.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, 1)
    try:
        shared.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR_QUEUE, _RECEIVED)
        expected = shared.getsockopt(socket.IPPROTO_TCP, _TCP_QUEUE_SEQ) & 0xFFFFFFFF
        shared.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR_QUEUE, _NO_QUEUE)
    finally:
        shared.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, 0)
        shared.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuse)
    yield Connection(
        local=_plain(local[0]),
        local_port=local[1],
        peer=_plain(peer[0]),
        peer_port=peer[1],
        expected=expected,
    )


def _plain(address: str) -> str:
    """Without its zone; an address of IPv4 in the clothes of IPv6 as the one that is on the wire."""
    return address.partition("%")[0].removeprefix("::ffff:")


def _checksum(content: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(content) // 2}H", content))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF
