"""Tell the neighbours that addresses are here now: gratuitous ARP, and unsolicited neighbour advertisements.

Rule: an announcement is help, not a condition: one that cannot be sent leaves the neighbours to find out.
Source: RFC 826, RFC 5227 (section 3); RFC 4861 (sections 4.4 and 7.2.6); packet(7).
"""

from __future__ import annotations

import ipaddress
import socket
import struct
from contextlib import suppress
from typing import Final

from ckpt.host.network.namespace import within
from ckpt.model.network import Network

_ETHERTYPE_ARP: Final = 0x0806
_ETHERTYPE_IPV6: Final = 0x86DD
_ARP: Final = struct.Struct("!HHBBH6s4s6s4s")
_ARP_REQUEST: Final = 1
_ARP_REPLY: Final = 2
_ADVERTISEMENT: Final = 136
_OVERRIDE: Final = 0x20000000
_ICMP6: Final = 58
_TARGET_LINK_ADDRESS: Final = bytes((2, 1))
_EVERYBODY: Final = b"\xff" * 6
_ALL_NODES: Final = ipaddress.IPv6Address("ff02::1")
_ALL_NODES_MAC: Final = bytes((0x33, 0x33, 0, 0, 0, 1))


def announce(network: Network, namespace: int) -> None:
    """Send one announcement for each address of the interface."""
    with suppress(OSError), within(namespace):
        packets = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC)
    with suppress(OSError), packets:
        packets.bind((network.interface, 0))
        mac: bytes = packets.getsockname()[4]
        for each in network.addresses:
            address = ipaddress.ip_interface(each.address).ip
            if each.interface != network.interface:
                continue
            for frame in (
                arp_frames(mac, address)
                if isinstance(address, ipaddress.IPv4Address)
                else (advertisement_frame(mac, address),)
            ):
                packets.send(frame)


def arp_frames(mac: bytes, address: ipaddress.IPv4Address) -> tuple[bytes, bytes]:
    """The two Ethernet frames of a gratuitous ARP: there are systems that believe only a request, or only a reply."""
    header = _EVERYBODY + mac + _ETHERTYPE_ARP.to_bytes(2, "big")
    bodies = (
        _ARP.pack(1, 0x0800, 6, 4, operation, mac, address.packed, _EVERYBODY, address.packed)
        for operation in (_ARP_REQUEST, _ARP_REPLY)
    )
    request, reply = (header + body for body in bodies)
    return request, reply


def advertisement_frame(mac: bytes, address: ipaddress.IPv6Address) -> bytes:
    """The Ethernet frame of an unsolicited neighbour advertisement, to all nodes, that overrides what they know."""
    option = _TARGET_LINK_ADDRESS + mac
    body = struct.pack("!BBHI", _ADVERTISEMENT, 0, 0, _OVERRIDE) + address.packed + option
    pseudo = address.packed + _ALL_NODES.packed + struct.pack("!II", len(body), _ICMP6)
    body = body[:2] + _checksum(pseudo + body).to_bytes(2, "big") + body[4:]
    ip = struct.pack("!IHBB", 6 << 28, len(body), _ICMP6, 255) + address.packed + _ALL_NODES.packed
    return _ALL_NODES_MAC + mac + _ETHERTYPE_IPV6.to_bytes(2, "big") + ip + body


def _checksum(content: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(content) // 2}H", content))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF
