"""The messages that wake peers: such as tcp_v4_err() and tcp_v6_err() of the kernel take for their connection."""

from __future__ import annotations

import ipaddress
import struct

from ckpt.host.network.waking import Connection, unreachable


def test_the_message_of_ipv4_has_the_head_of_what_the_peer_sent_and_its_checksum() -> None:
    connection = Connection(
        local="10.0.0.5", local_port=7000, peer="10.0.0.9", peer_port=40000, expected=0xFFFFFFFE
    )
    message = unreachable(connection)
    assert message[:2] == bytes((3, 1)), "host unreachable"
    inner = message[8:]
    assert inner[12:20] == ipaddress.ip_address("10.0.0.9").packed + ipaddress.ip_address("10.0.0.5").packed
    assert struct.unpack("!HHI", inner[20:28]) == (40000, 7000, 0xFFFFFFFE)
    total = sum(struct.unpack(f"!{len(message) // 2}H", message))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    assert total == 0xFFFF


def test_the_message_of_ipv6_has_the_head_of_what_the_peer_sent() -> None:
    connection = Connection(local="fd00::5", local_port=7000, peer="fd00::9", peer_port=40000, expected=1)
    message = unreachable(connection)
    assert message[:2] == bytes((1, 0)), "no route to the destination"
    inner = message[8:]
    assert inner[:1] == b"\x60"
    assert inner[6] == 6
    assert inner[8:40] == ipaddress.ip_address("fd00::9").packed + ipaddress.ip_address("fd00::5").packed
    assert struct.unpack("!HHI", inner[40:48]) == (40000, 7000, 1)
