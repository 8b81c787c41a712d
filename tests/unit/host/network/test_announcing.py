"""The frames by which neighbours learn where an address is."""

from __future__ import annotations

import ipaddress
import struct

from ckpt.host.network.announcing import advertisement_frame, arp_frames

MAC = bytes.fromhex("020000000005")


def test_gratuitous_arp_is_a_request_and_a_reply_that_both_say_the_same() -> None:
    address = ipaddress.IPv4Address("10.0.0.5")
    for frame, operation in zip(arp_frames(MAC, address), (1, 2), strict=True):
        assert frame[:6] == b"\xff" * 6
        assert frame[6:14] == MAC + b"\x08\x06"
        assert struct.unpack("!H", frame[20:22]) == (operation,)
        assert frame[22:32] == MAC + address.packed
        assert frame[38:42] == address.packed


def test_the_advertisement_goes_to_all_nodes_overrides_and_has_the_checksum_that_makes_the_sum_nothing() -> (
    None
):
    address = ipaddress.IPv6Address("fd00::5")
    frame = advertisement_frame(MAC, address)
    assert frame[:14] == bytes.fromhex("333300000001") + MAC + b"\x86\xdd"
    ip, body = frame[14:54], frame[54:]
    assert ip[7] == 255, "a neighbour drops one that a router may have forwarded"
    assert struct.unpack("!I", body[4:8])[0] == 0x20000000
    assert body[8:24] == address.packed
    assert body[24:] == bytes((2, 1)) + MAC
    whole = ip[8:40] + struct.pack("!II", len(body), 58) + body
    total = sum(struct.unpack(f"!{len(whole) // 2}H", whole))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    assert total == 0xFFFF
