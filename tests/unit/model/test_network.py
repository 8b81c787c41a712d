"""What `--net` may say, and what a manifest may say of a network."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ckpt.model.network import LinkKind, NetworkAddress, parse_network, refuse_network

GOOD = "bridge=br0,address=10.0.0.5/24,gateway=10.0.0.1,address=fd00::5/64,gateway=fe80::1,mac=02:00:00:00:00:0A,mtu=1400"


def test_a_wish_is_read_whole() -> None:
    network = parse_network(GOOD)
    assert (network.kind, network.parent, network.mac, network.mtu) == (
        LinkKind.BRIDGE,
        "br0",
        "02:00:00:00:00:0a",
        1400,
    )
    assert [each.address for each in network.addresses] == ["10.0.0.5/24", "fd00::5/64"]
    assert [(each.destination, each.gateway) for each in network.routes] == [
        ("0.0.0.0/0", "10.0.0.1"),
        ("::/0", "fe80::1"),
    ]
    assert parse_network("macvlan=eth1,address=10.0.0.5/24").kind is LinkKind.MACVLAN


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        ("", "is none of bridge="),
        ("bridge=br0", "It needs address="),
        ("address=10.0.0.5/24", "one of bridge=NAME and macvlan=NAME"),
        ("bridge=br0,bridge=br1,address=10.0.0.5/24", "stands there 2 times"),
        ("bridge=br0,address=10.0.0.5", "needs its prefix, like 10.0.0.5/24"),
        ("bridge=br0,address=fd00::5", "needs its prefix, like fd00::5/64"),
        ("bridge=br0,address=10.0.0.256/24", "is no address with its prefix"),
        ("bridge=br0,address=224.0.0.1/24", "cannot be the address of an interface"),
        ("bridge=br0,address=fe80::1%eth0/64", "needs its prefix"),
        ("bridge=br0,address=10.0.0.5/24,gateway=10.0.1.1", "not in the network of an address"),
        ("bridge=br0,address=10.0.0.5/24,gateway=10.0.0.1,gateway=10.0.0.2", "two gateways of one family"),
        ("bridge=br0,address=10.0.0.5/24,gateway=here", "is no IP address"),
        ("bridge=br0,address=10.0.0.5/24,mac=01:00:5e:00:00:01", "is no address of one interface"),
        ("bridge=br0,address=10.0.0.5/24,mtu=1", "is not between 68 and 65535"),
        ("bridge=br0,address=10.0.0.5/24,mtu=many", "is no number"),
        ("bridge=averyverylongname,address=10.0.0.5/24", "is no name of an interface"),
        ("bridge=-batch,address=10.0.0.5/24", "is no name of an interface"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(wish: str, words: str) -> None:
    with pytest.raises(ValueError, match=r"\.$") as refused:
        parse_network(wish)
    assert words in str(refused.value)


def test_no_text_of_a_network_can_be_a_second_command() -> None:
    network = parse_network(GOOD)
    [route, *_] = network.routes
    for hostile in (
        replace(network, parent="br0\nlink delete eth0"),
        replace(network, interface="eth0 up"),
        replace(network, mac="02:00:00:00:00:05 up"),
        replace(network, addresses=(NetworkAddress(interface="lo", address="10.0.0.5/24 dev eth1"),)),
        replace(network, routes=(replace(route, destination="10.0.0.0/8 dev eth1"),)),
        replace(network, routes=(replace(route, source="10.0.0.5\n"),)),
        replace(network, routes=(replace(route, metric=-1),)),
        replace(network, addresses=network.addresses * 3000),
    ):
        assert refuse_network(hostile)
