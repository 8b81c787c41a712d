"""The sockets of a network namespace, as the kernel tells them: netlink's SOCK_DIAG, in plain `struct`.

Rules:
- One request a family and protocol; a family that this kernel has no diagnostics for is named in `missing`.
- Sockets are kept as the kernel's bytes and become values only when asked for: a host has thousands.
- Another network namespace is entered by a thread that ends afterwards, never by one that goes on.
Source: sock_diag(7); <linux/inet_diag.h>, <linux/unix_diag.h>, <linux/packet_diag.h>, <linux/netlink_diag.h>;
net/unix/diag.c for the pending connections. Why no library: decisions/0012.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final, TypeVar

from ckpt.host.diag_messages import (
    InetSocket,
    NetlinkSocket,
    PacketSocket,
    UnixSocket,
    inode_of,
    parse_inet,
    parse_netlink,
    parse_packet,
    parse_unix,
)
from ckpt.host.linux import setns
from ckpt.units import InodeNumber, Pid

MESSAGES_MAX: Final = 500_000
"""Of one family and protocol in one namespace."""

_NETLINK_SOCK_DIAG: Final = 4
_SOCK_DIAG_BY_FAMILY: Final = 20
_REQUEST_DUMP: Final = 0x301
_ERROR, _DONE = 2, 3
_HEAD: Final = struct.Struct("=IHHII")
_ERRNO: Final = struct.Struct("=i")
_RECEIVE_BYTES: Final = 1 << 18
_TIMEOUT_S: Final = 5.0
_CLONE_NEWNET: Final = 0x40000000

_ALL: Final = 0xFFFFFFFF
_ANY_PROTOCOL: Final = 0xFF
_NO_COOKIE: Final = struct.pack("=II", _ALL, _ALL)
_UNIX_SHOW: Final = 0b1_1101  # name, peer, pending connections, queues
_PACKET_SHOW: Final = 0b11  # info, memberships
_NETLINK_SHOW: Final = 0b11  # memory, groups
_INET_EXTENSIONS: Final = 1 << 1
"""INET_DIAG_INFO, with which MD5 keys and the protocol above come (net/ipv4/inet_diag.c, inet_sk_diag_fill())."""
_INET_ID_BYTES: Final = 48

_PROTOCOLS: Final = (
    socket.IPPROTO_TCP,
    socket.IPPROTO_UDP,
    socket.IPPROTO_UDPLITE,
    socket.IPPROTO_RAW,
)

Value = TypeVar("Value")
Raw = dict[InodeNumber, bytes]


@dataclass(slots=True, kw_only=True)
class Sockets:
    """The sockets of one network namespace at one moment.

    `missing` are the families ("unix", "inet", "packet", "netlink") that the kernel could not tell about.
    """

    raw: Mapping[str, Raw]
    missing: frozenset[str] = frozenset()
    _made: dict[tuple[str, InodeNumber], object] = field(default_factory=dict)
    _listeners: dict[InodeNumber, UnixSocket] | None = None

    def unix(self, inode: InodeNumber) -> UnixSocket | None:
        """The unix socket with this inode number; None if there is none here."""
        return self._value("unix", inode, parse_unix)

    def inet(self, inode: InodeNumber) -> InetSocket | None:
        """The TCP, UDP or raw socket with this inode number; none is told of that is neither bound nor connected."""
        return self._value("inet", inode, parse_inet)

    def packet(self, inode: InodeNumber) -> PacketSocket | None:
        """The packet socket with this inode number."""
        return self._value("packet", inode, parse_packet)

    def netlink(self, inode: InodeNumber) -> NetlinkSocket | None:
        """The netlink socket with this inode number."""
        return self._value("netlink", inode, parse_netlink)

    def listener_of(self, client: InodeNumber) -> UnixSocket | None:
        """The unix socket that has not accepted this one's connection yet; None if there is none."""
        if self._listeners is None:
            everyone = map(self.unix, self.raw.get("unix", {}))
            self._listeners = {inode: each for each in everyone if each for inode in each.pending}
        return self._listeners.get(client)

    def _value(self, family: str, inode: InodeNumber, parse: Callable[[bytes], Value]) -> Value | None:
        raw = self.raw.get(family, {}).get(inode)
        if raw is None:
            return None
        key = (family, inode)
        if key not in self._made:
            self._made[key] = parse(raw)
        made: Value = self._made[key]  # type: ignore[assignment]  # put there by the same parser
        return made


def sockets_of(pid: Pid, families: tuple[str, ...] = ("unix", "inet", "packet", "netlink")) -> Sockets:
    """The sockets of the network namespace that this process lives in.

    Raises:
        OSError: the process has ended, its namespace may not be entered, or there are more than MESSAGES_MAX.
    """
    namespace = f"/proc/{pid}/ns/net"
    if os.stat(namespace).st_ino == os.stat("/proc/self/ns/net").st_ino:
        return _read(families)

    def read_there() -> Sockets:
        fd = os.open(namespace, os.O_RDONLY | os.O_CLOEXEC)
        try:
            setns(fd, _CLONE_NEWNET)
        finally:
            os.close(fd)
        return _read(families)

    # Only this thread is there, and it ends here.
    with ThreadPoolExecutor(max_workers=1) as other:
        return other.submit(read_there).result()


def _read(families: tuple[str, ...]) -> Sockets:
    raw: dict[str, Raw] = {}
    missing: set[str] = set()
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG) as diag:
        diag.settimeout(_TIMEOUT_S)
        for family in families:
            found = raw.setdefault(family, {})
            for request in _requests(family):
                try:
                    for message in _dump(diag, request):
                        found[inode_of(family, message)] = message
                except OSError as error:
                    if error.errno not in (errno.ENOENT, errno.EINVAL, errno.EOPNOTSUPP):
                        raise
                    missing.add(family)
    return Sockets(raw=raw, missing=frozenset(missing))


def _requests(family: str) -> Iterator[bytes]:
    match family:
        case "unix":
            yield struct.pack("=BBHIII", socket.AF_UNIX, 0, 0, _ALL, 0, _UNIX_SHOW) + _NO_COOKIE
        case "packet":
            yield struct.pack("=BBHII", socket.AF_PACKET, 0, 0, 0, _PACKET_SHOW) + _NO_COOKIE
        case "netlink":
            yield struct.pack("=BBHII", socket.AF_NETLINK, _ANY_PROTOCOL, 0, 0, _NETLINK_SHOW) + _NO_COOKIE
        case _:
            for domain in (socket.AF_INET, socket.AF_INET6):
                for protocol in _PROTOCOLS:
                    head = struct.pack("=BBBxI", domain, protocol, _INET_EXTENSIONS, _ALL)
                    yield head + bytes(_INET_ID_BYTES)


def _dump(diag: socket.socket, request: bytes) -> Iterator[bytes]:
    diag.send(_HEAD.pack(_HEAD.size + len(request), _SOCK_DIAG_BY_FAMILY, _REQUEST_DUMP, 1, 0) + request)
    left = MESSAGES_MAX
    while True:
        answer = diag.recv(_RECEIVE_BYTES)
        for kind, body in messages(answer):
            if kind == _DONE:
                return
            if kind == _ERROR:
                number = -_ERRNO.unpack_from(body)[0]
                raise OSError(number, os.strerror(number))
            left -= 1
            if left < 0:
                raise OSError(errno.E2BIG, "too many sockets")
            yield body


def messages(answer: bytes) -> Iterator[tuple[int, bytes]]:
    """The messages of one answer, each its type and its bytes without the head.

    Raises:
        OSError: EBADMSG, the bytes are no netlink messages.
    """
    start = 0
    while start < len(answer):
        if len(answer) - start < _HEAD.size:
            raise OSError(errno.EBADMSG, "a netlink message is cut off")
        size, kind, _, _, _ = _HEAD.unpack_from(answer, start)
        if not _HEAD.size <= size <= len(answer) - start:
            raise OSError(errno.EBADMSG, "a netlink message has a wrong length")
        yield kind, answer[start + _HEAD.size : start + size]
        start += (size + 3) & ~3
