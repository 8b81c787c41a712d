"""The sockets of an image set, with what waits in their queues.

Source: images/sk-inet.proto, images/sk-unix.proto, images/sk-netlink.proto, images/packet-sock.proto,
images/tcp-stream.proto, images/sk-packet.proto; criu/sk-tcp.c (an entry, then both queues), criu/sk-queue.c (`id_for`
is the number of the open file), criu/sk-unix.c (USK_EXTERN); include/net/tcp_states.h, include/uapi/linux/netlink.h.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final

from ckpt.host.criu.imagefile import read_entries
from ckpt.host.criu.reading.open_files import OpenFiles
from ckpt.host.criu.reading.values import name_of, text
from ckpt.model.contents import Holder, Socket, SocketFamily
from ckpt.units import ByteCount

_TYPES: Final = {1: "stream", 2: "datagram", 3: "raw", 4: "rdm", 5: "seqpacket", 10: "packet"}
_PROTOCOLS: Final = {0: "ip", 1: "icmp", 6: "tcp", 17: "udp", 58: "icmpv6", 136: "udplite"}
_NETLINK: Final = {
    0: "route",
    4: "sock_diag",
    5: "nflog",
    6: "xfrm",
    9: "audit",
    10: "fib_lookup",
    11: "connector",
    12: "netfilter",
    15: "kobject_uevent",
    16: "generic",
}
_TCP: Final = 6
_TCP_STATES: Final = {
    1: "established",
    2: "syn-sent",
    3: "syn-received",
    4: "fin-wait-1",
    5: "fin-wait-2",
    6: "time-wait",
    7: "closed",
    8: "close-wait",
    9: "last-ack",
    10: "listening",
    11: "closing",
}
_STATES: Final = {1: "connected", 7: "unconnected", 10: "listening"}
"""Sockets that are not TCP's use these of its states."""

_INET6: Final = 10
_EXTERN: Final = 1 << 0


def read_sockets(
    images: Path, files: OpenFiles, holders: Mapping[int, tuple[Holder, ...]]
) -> tuple[Socket, ...]:
    """The sockets of an image set: inet, unix, netlink, packet.

    Args:
        images: The set.
        files: Its open files.
        holders: From the number of an open file to who has it.

    Raises:
        ObjectCorrupt, OsRefused: an image cannot be read.
    """
    queued = _queued(images / "sk-queues.img")
    return (
        *(_inet(images, message, holders.get(number, ())) for number, message in files.of_kind("isk")),
        *(
            _unix(message, queued[number], holders.get(number, ()))
            for number, message in files.of_kind("usk")
        ),
        *(_netlink(message, holders.get(number, ())) for number, message in files.of_kind("nlsk")),
        *(_packet(message, holders.get(number, ())) for number, message in files.of_kind("psk")),
    )


def _inet(images: Path, message: Any, holders: tuple[Holder, ...]) -> Socket:
    receive_bytes, send_bytes = _stream(images / f"tcp-stream-{message.ino:x}.img")
    return Socket(
        number=message.ino,
        family=SocketFamily.INET6 if message.family == _INET6 else SocketFamily.INET,
        type=name_of(message.type, _TYPES, "type"),
        protocol=name_of(message.proto, _PROTOCOLS, "protocol"),
        state=name_of(message.state, _TCP_STATES if message.proto == _TCP else _STATES, "state"),
        local=_address(message.src_addr, message.src_port),
        remote=_address(message.dst_addr, message.dst_port),
        peer=0,
        outside=False,
        receive_bytes=receive_bytes,
        send_bytes=send_bytes,
        holders=holders,
    )


def _unix(message: Any, queued_bytes: int, holders: tuple[Holder, ...]) -> Socket:
    return Socket(
        number=message.ino,
        family=SocketFamily.UNIX,
        type=name_of(message.type, _TYPES, "type"),
        protocol="",
        state=name_of(message.state, _STATES, "state"),
        local=_unix_name(bytes(message.name), text(message.name_dir)),
        remote="",
        peer=message.peer,
        outside=bool(message.uflags & _EXTERN),
        receive_bytes=ByteCount(queued_bytes),
        send_bytes=ByteCount(0),
        holders=holders,
    )


def _netlink(message: Any, holders: tuple[Holder, ...]) -> Socket:
    return Socket(
        number=message.ino,
        family=SocketFamily.NETLINK,
        type="raw",
        protocol=name_of(message.protocol, _NETLINK, "protocol"),
        state=name_of(message.state, _STATES, "state"),
        local=f"port {message.portid}" if message.portid else "",
        remote=f"port {message.dst_portid}" if message.dst_portid else "",
        peer=0,
        outside=False,
        receive_bytes=ByteCount(0),
        send_bytes=ByteCount(0),
        holders=holders,
    )


def _packet(message: Any, holders: tuple[Holder, ...]) -> Socket:
    return Socket(
        number=0,
        family=SocketFamily.PACKET,
        type=name_of(message.type, _TYPES, "type"),
        protocol=f"{message.protocol:#06x}",
        state="",
        local=f"interface {message.ifindex}" if message.ifindex else "",
        remote="",
        peer=0,
        outside=False,
        receive_bytes=ByteCount(0),
        send_bytes=ByteCount(0),
        holders=holders,
    )


def _address(words: Any, port: int) -> str:
    """ADDRESS:PORT; "" for the address of nobody in particular without a port."""
    packed = struct.pack(f"<{len(words)}I", *words)
    if len(packed) not in {4, 16} or not (any(packed) or port):
        return ""
    address = ip_address(packed)
    return f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"


def _unix_name(name: bytes, directory: str) -> str:
    if name.startswith(b"\0"):
        return "@" + text(name[1:])
    path = text(name.rstrip(b"\0"))
    # A socket that was bound to a relative path: the directory says relative to what.
    return f"{directory.rstrip('/')}/{path}" if path and not path.startswith("/") and directory else path


def _stream(image: Path) -> tuple[ByteCount, ByteCount]:
    """What waits in the receive and the send queue of a TCP connection."""
    if not image.is_file():
        return ByteCount(0), ByteCount(0)
    entries = read_entries(
        image, "TCP_STREAM", "tcp_stream_entry", extra_bytes=lambda entry: int(entry.inq_len + entry.outq_len)
    )
    return ByteCount(sum(each.inq_len for each in entries)), ByteCount(sum(each.outq_len for each in entries))


def _queued(image: Path) -> Counter[int]:
    """How many bytes wait for the socket behind each open file."""
    queued: Counter[int] = Counter()
    if image.is_file():
        for packet in read_entries(
            image, "SK_QUEUES", "sk_packet_entry", extra_bytes=lambda entry: int(entry.length)
        ):
            queued[packet.id_for] += packet.length
    return queued
