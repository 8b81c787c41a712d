"""The kernel's messages about sockets (SOCK_DIAG) as values: bytes in, values out, nothing is asked here.

Rule: an attribute or a message that is too short is refused with an OSError (EBADMSG), like all that sock_diag.py
cannot read; an attribute that is not known is skipped.
Source: <linux/inet_diag.h>, <linux/unix_diag.h>, <linux/packet_diag.h>, <linux/netlink_diag.h>; the states are of
<net/tcp_states.h>.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final

from ckpt.units import ByteCount, InodeNumber


class State(IntEnum):
    """The state of a connection, as TCP and unix sockets share them."""

    ESTABLISHED = 1
    SYN_SENT = 2
    SYN_RECV = 3
    FIN_WAIT1 = 4
    FIN_WAIT2 = 5
    TIME_WAIT = 6
    CLOSE = 7
    CLOSE_WAIT = 8
    LAST_ACK = 9
    LISTEN = 10
    CLOSING = 11
    NEW_SYN_RECV = 12
    BOUND_INACTIVE = 13


@dataclass(frozen=True, slots=True, kw_only=True)
class UnixSocket:
    """A unix socket.

    `peer` is 0 without one, or while the connection is not accepted; `name` is as it was bound, abstract ones begin
    with a zero byte. `pending` are the sockets whose connections were not accepted yet, 0 for each that was closed.
    `received` counts bytes, or the waiting connections of a listening socket.
    """

    inode: InodeNumber
    type: int
    state: int
    peer: InodeNumber
    name: bytes
    pending: tuple[InodeNumber, ...]
    received: int
    sent: int
    shut_both: bool

    @property
    def shown_name(self) -> str:
        """The name for people, an abstract one with an @; "" without one."""
        text = self.name.rstrip(b"\0") if not self.name.startswith(b"\0") else b"@" + self.name[1:]
        return text.decode(errors="backslashreplace").replace("\0", "@")


@dataclass(frozen=True, slots=True, kw_only=True)
class InetSocket:
    """A socket of TCP, UDP, UDP-Lite or a raw one.

    `received` and `sent` are bytes that wait in its queues; of a listening one, the connections that wait and how
    many may. `protocol_above` ("tls") is "" where there is none.
    """

    inode: InodeNumber
    family: int
    state: int
    local_port: int
    remote_port: int
    local: str
    remote: str
    received: int
    sent: int
    protocol_above: str
    signs_md5: bool

    @property
    def shown_local(self) -> str:
        """Its own address and port, for people."""
        return f"[{self.local}]:{self.local_port}" if ":" in self.local else f"{self.local}:{self.local_port}"

    @property
    def shown_remote(self) -> str:
        """The address and port of the other side, for people."""
        remote = f"[{self.remote}]" if ":" in self.remote else self.remote
        return f"{remote}:{self.remote_port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class PacketSocket:
    """A packet socket; `memberships` are how often each of its multicast memberships was asked for."""

    inode: InodeNumber
    memberships: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class NetlinkSocket:
    """A netlink socket; `groups` are the multicast groups that it is in, counted from 1."""

    inode: InodeNumber
    port: int
    groups: tuple[int, ...]
    received_bytes: ByteCount


_UNIX: Final = struct.Struct("=BBBxI8x")
_INET: Final = struct.Struct("=BBxx2s2s16s16s12xIIIII")
_PACKET: Final = struct.Struct("=BBHI8x")
_NETLINK: Final = struct.Struct("=BBBBIIII8x")
_INODE_AT: Final = {"unix": 4, "inet": 68, "packet": 4, "netlink": 16}
_U32: Final = struct.Struct("=I")
_TWO_U32: Final = struct.Struct("=II")
_ATTRIBUTE: Final = struct.Struct("=HH")

_UNIX_NAME, _UNIX_PEER, _UNIX_ICONS, _UNIX_RQLEN, _UNIX_SHUTDOWN = 0, 2, 3, 4, 6
_INET_MD5SIG, _INET_ULP_INFO = 18, 19
_ULP_NAME: Final = 1
_PACKET_MCLIST: Final = 1
_MEMBERSHIP: Final = struct.Struct("=IIHH32s")
_NETLINK_MEMINFO, _NETLINK_GROUPS = 0, 1
_TYPE_MASK: Final = 0x3FFF
_SHUT_BOTH: Final = 3


def inode_of(family: str, message: bytes) -> InodeNumber:
    """The inode number of the socket that a message is about.

    Raises:
        OSError: EBADMSG.
    """
    return InodeNumber(_u32(message, _INODE_AT[family]))


def parse_unix(message: bytes) -> UnixSocket:
    """A struct unix_diag_msg and its attributes."""
    _, kind, state, inode = _unpack(_UNIX, message)
    found = _attributes(message, _UNIX.size)
    icons = found.get(_UNIX_ICONS, b"")
    received, sent = _unpack(_TWO_U32, found.get(_UNIX_RQLEN, bytes(8)))
    return UnixSocket(
        inode=InodeNumber(inode),
        type=kind,
        state=state,
        peer=InodeNumber(_u32(found.get(_UNIX_PEER, bytes(4)), 0)),
        name=found.get(_UNIX_NAME, b""),
        pending=tuple(InodeNumber(_u32(icons, at)) for at in range(0, len(icons), 4)),
        received=received,
        sent=sent,
        shut_both=found.get(_UNIX_SHUTDOWN, b"") == bytes((_SHUT_BOTH,)),
    )


def parse_inet(message: bytes) -> InetSocket:
    """A struct inet_diag_msg and its attributes."""
    family, state, local_port, remote_port, local, remote, _, received, sent, _, inode = _unpack(
        _INET, message
    )
    found = _attributes(message, _INET.size)
    above = _attributes(found.get(_INET_ULP_INFO, b""), 0)
    return InetSocket(
        inode=InodeNumber(inode),
        family=family,
        state=state,
        local_port=int.from_bytes(local_port, "big"),
        remote_port=int.from_bytes(remote_port, "big"),
        local=_address(family, local),
        remote=_address(family, remote),
        received=received,
        sent=sent,
        protocol_above=_text(above.get(_ULP_NAME, b"")),
        signs_md5=bool(found.get(_INET_MD5SIG)),
    )


def parse_packet(message: bytes) -> PacketSocket:
    """A struct packet_diag_msg and its attributes."""
    _, _, _, inode = _unpack(_PACKET, message)
    found = _attributes(message, _PACKET.size)
    memberships = found.get(_PACKET_MCLIST, b"")
    memberships = memberships[: len(memberships) - len(memberships) % _MEMBERSHIP.size]
    return PacketSocket(
        inode=InodeNumber(inode),
        memberships=tuple(count for _, count, _, _, _ in _MEMBERSHIP.iter_unpack(memberships)),
    )


def parse_netlink(message: bytes) -> NetlinkSocket:
    """A struct netlink_diag_msg and its attributes."""
    _, _, _, _, port, _, _, inode = _unpack(_NETLINK, message)
    found = _attributes(message, _NETLINK.size)
    bits = int.from_bytes(found.get(_NETLINK_GROUPS, b""), "little")
    return NetlinkSocket(
        inode=InodeNumber(inode),
        port=port,
        groups=tuple(place + 1 for place in range(bits.bit_length()) if bits >> place & 1),
        received_bytes=ByteCount(_u32(found.get(_NETLINK_MEMINFO, bytes(4)), 0)),
    )


def _unpack(layout: struct.Struct, message: bytes) -> tuple[Any, ...]:
    if len(message) < layout.size:
        raise OSError(errno.EBADMSG, f"a message about a socket has {len(message)} of {layout.size} bytes")
    return layout.unpack_from(message)


def _u32(message: bytes, at: int) -> int:
    if len(message) < at + _U32.size:
        raise OSError(errno.EBADMSG, f"a message about a socket has {len(message)} of {at + _U32.size} bytes")
    number: int = _U32.unpack_from(message, at)[0]
    return number


def _attributes(message: bytes, start: int) -> Mapping[int, bytes]:
    found: dict[int, bytes] = {}
    while start + _ATTRIBUTE.size <= len(message):
        size, kind = _ATTRIBUTE.unpack_from(message, start)
        if not _ATTRIBUTE.size <= size <= len(message) - start:
            raise OSError(errno.EBADMSG, "an attribute of a socket has a wrong length")
        found[kind & _TYPE_MASK] = message[start + _ATTRIBUTE.size : start + size]
        start += (size + 3) & ~3
    return found


def _address(family: int, packed: bytes) -> str:
    if family == socket.AF_INET:
        return socket.inet_ntop(socket.AF_INET, packed[:4])
    return socket.inet_ntop(socket.AF_INET6, packed)


def _text(value: bytes) -> str:
    return value.rstrip(b"\0").decode(errors="replace")
