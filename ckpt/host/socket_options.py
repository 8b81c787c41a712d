"""The options of another process's sockets: asked of a duplicate of the descriptor, which is closed at once.

Rules: nothing is ever set, and nothing taken from a socket's queue. A duplicate lives for microseconds: a connection that its owner
closes meanwhile is closed when it goes.
Source: pidfd_getfd(2), getsockopt(2), ip(7) (MCAST_MSFILTER); net/ipv4/igmp.c, ip_mc_gsfget(); proc_pid_net(5).
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Final, NamedTuple

from ckpt.host import linux
from ckpt.units import Pid

_TEXT_BYTES: Final = 16
_MCAST_MSFILTER: Final = 48
_FILTER_BYTES: Final = 144
_GROUP_AT: Final = 8
_LEVELS: Final = {socket.AF_INET: 0, socket.AF_INET6: 41}
_MEMBERS_OF_ALL: Final = ("224.0.0.1", "ff01::1", "ff02::1")
_SOLICITED: Final = "ff02::1:ff"

_SIOCGSKNS: Final = 0x894C
_SO_PEEK_OFF: Final = 42
_DESCRIPTORS_MAX: Final = 253
"""SCM_MAX_FD of the kernel."""
_INT: Final = struct.Struct("=i")

_libc: Final = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Option:
    """A socket option: as getsockopt(2) names it, and as people do; `is_text` where its value is no number."""

    level: int
    number: int
    name: str
    is_text: bool = False

    def value(self, of: socket.socket) -> int | bytes | None:
        """What it is set to; None where this socket has no such option."""
        # Asked for thousands of times in a check: no context manager.
        try:
            if self.is_text:
                return of.getsockopt(self.level, self.number, _TEXT_BYTES).rstrip(b"\0")
            return of.getsockopt(self.level, self.number)
        except OSError:
            return None


@dataclass(frozen=True, slots=True)
class Group:
    """A multicast group on a network device."""

    family: int
    device: int
    address: str


class Flown(NamedTuple):
    """A descriptor that is on its way in a message: where it leads."""

    target: str
    status: os.stat_result


@contextmanager
def shared_socket(pid: Pid, fd: int) -> Iterator[socket.socket]:
    """A duplicate of a process's descriptor, closed at the end.

    Raises:
        OSError: it was closed meanwhile, or the process may not be traced.
    """
    pidfd = os.pidfd_open(pid)
    try:
        duplicate = linux.pidfd_getfd(pidfd, fd)
    finally:
        os.close(pidfd)
    with socket.socket(fileno=duplicate) as shared:
        yield shared


def groups_of(pid: Pid) -> tuple[Group, ...]:
    """The multicast groups that somebody in the network namespace of this process has joined."""
    found: list[Group] = []
    device = 0
    with suppress(OSError), open(f"/proc/{pid}/net/igmp", encoding="ascii", errors="replace") as stream:
        next(stream, None)
        for line in stream:
            first = line.split(None, 1)[0]
            if not line.startswith("\t"):
                device = int(first)
            else:
                address = socket.inet_ntop(socket.AF_INET, struct.pack("=I", int(first, 16)))
                found.append(Group(socket.AF_INET, device, address))
    with suppress(OSError), open(f"/proc/{pid}/net/igmp6", encoding="ascii", errors="replace") as stream:
        for line in stream:
            index, _, packed, *_ = line.split()
            address = socket.inet_ntop(socket.AF_INET6, bytes.fromhex(packed))
            found.append(Group(socket.AF_INET6, int(index), address))
    return tuple(
        group
        for group in found
        if group.address not in _MEMBERS_OF_ALL and not group.address.startswith(_SOLICITED)
    )


def has_joined(of: socket.socket, group: Group) -> bool:
    """Whether this socket has joined the group."""
    if of.family != group.family:
        return False
    packed = socket.inet_pton(group.family, group.address)
    # A struct sockaddr: the address follows the port, and in IPv6 the flow.
    padding = 2 if group.family == socket.AF_INET else 6
    asked = bytearray(_FILTER_BYTES)
    struct.pack_into("=I", asked, 0, group.device)
    struct.pack_into(f"=H{padding}x{len(packed)}s", asked, _GROUP_AT, group.family, packed)
    buffer = (ctypes.c_char * _FILTER_BYTES).from_buffer(asked)
    size = ctypes.c_uint32(_FILTER_BYTES)
    level = _LEVELS[socket.AddressFamily(group.family)]
    done: int = _libc.getsockopt(of.fileno(), level, _MCAST_MSFILTER, buffer, ctypes.byref(size))
    return done == 0


def namespace_of(of: socket.socket) -> int:
    """The inode number of the network namespace that this socket belongs to.

    Raises:
        OSError: EPERM, without CAP_NET_ADMIN there.
    """
    fd = fcntl.ioctl(of.fileno(), _SIOCGSKNS)
    try:
        return os.fstat(fd).st_ino
    finally:
        os.close(fd)


def descriptors_in_flight(of: socket.socket) -> tuple[Flown, ...]:
    """What came with the first message that waits in a unix socket (SCM_RIGHTS); the message stays there.

    None are told where the owner looks into the queue by SO_PEEK_OFF, as that would move on.
    """
    if of.getsockopt(socket.SOL_SOCKET, _SO_PEEK_OFF) >= 0:
        return ()
    flags = socket.MSG_PEEK | socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
    _, control, _, _ = of.recvmsg(1, socket.CMSG_SPACE(_DESCRIPTORS_MAX * _INT.size), flags)
    found: list[Flown] = []
    for level, kind, content in control:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            for (fd,) in _INT.iter_unpack(content[: len(content) - len(content) % _INT.size]):
                try:
                    found.append(Flown(os.readlink(f"/proc/self/fd/{fd}"), os.fstat(fd)))
                finally:
                    os.close(fd)
    return tuple(found)
