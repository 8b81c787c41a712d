"""The network of a job that has one of its own: an interface, its addresses and its routes.

Rules: whatever is made of it passes through refuse_network() first; after that every text of it is one plain word.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from ckpt.units import InodeNumber

INTERFACE: Final = "eth0"
"""What the interface is called inside."""

LOOPBACK: Final = "lo"
MAIN_TABLE: Final = 254
ENTRIES_MAX: Final = 4096
MTU_MIN: Final = 68
MTU_MAX: Final = 65535

_LINK: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,14}", re.ASCII)
_MAC: Final = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}", re.ASCII)
_METRIC_MAX: Final = 2**32 - 1


class LinkKind(StrEnum):
    """How the interface reaches the host's network. The values are those of `ckpt run --net`."""

    BRIDGE = "bridge"
    MACVLAN = "macvlan"


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkAddress:
    """An address with its prefix, "10.0.0.5/24", of `interface`: the job's own or lo."""

    interface: str
    address: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkRoute:
    """A unicast route out of `interface`; `destination` is a prefix, "0.0.0.0/0" for the default.

    `gateway` and `source` are "" where the route has none.
    """

    destination: str
    gateway: str
    interface: str
    source: str
    metric: int
    table: int
    on_link: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """A network of its own.

    `namespace` is the inode of the network namespace at the dump, 0 for one that is only wished. `parent` is the
    host's bridge or interface. `mac` "" and `mtu` 0 leave it to the kernel.
    """

    namespace: InodeNumber
    kind: LinkKind
    parent: str
    interface: str
    mac: str
    mtu: int
    addresses: tuple[NetworkAddress, ...]
    routes: tuple[NetworkRoute, ...]

    @property
    def key(self) -> str:
        """What CRIU's images call the namespace."""
        return f"ckpt-net-{self.namespace}"

    def __str__(self) -> str:
        return f"{self.kind}={self.parent}"


def parse_network(text: str) -> Network:
    """The network that `bridge=br0,address=10.0.0.5/24,gateway=10.0.0.1` wishes for.

    Raises:
        ValueError: with a sentence that says what is wrong.
    """
    given: dict[str, list[str]] = {}
    for part in text.split(","):
        key, equals, value = part.partition("=")
        if not equals or not value or key not in _KEYS:
            raise ValueError(f"{part!r} is none of {', '.join(f'{known}=…' for known in _KEYS)}.")
        given.setdefault(key, []).append(value)
    twice = next((key for key, values in given.items() if len(values) > 1 and key not in _REPEATED), "")
    if twice:
        raise ValueError(f"{twice}= stands there {len(given[twice])} times.")
    kinds = [kind for kind in LinkKind if kind in given]
    if len(kinds) != 1:
        raise ValueError("It needs one of bridge=NAME and macvlan=NAME.")
    mtu = given.get("mtu", ["0"])[0]
    if not mtu.isdecimal():
        raise ValueError(f"mtu={mtu} is no number.")
    if "address" not in given:
        raise ValueError("It needs address=, an address with its prefix, for example address=10.0.0.5/24.")
    network = Network(
        namespace=InodeNumber(0),
        kind=kinds[0],
        parent=given[kinds[0]][0],
        interface=INTERFACE,
        mac=given.get("mac", [""])[0].lower(),
        mtu=int(mtu),
        addresses=tuple(NetworkAddress(interface=INTERFACE, address=each) for each in given["address"]),
        routes=tuple(_default_route(each) for each in given.get("gateway", [])),
    )
    reason = refuse_network(network) or _refuse_gateways(network)
    if reason:
        raise ValueError(reason)
    return network


def refuse_network(network: Network) -> str:
    """Why this network cannot be made, in a sentence; "" if it can."""
    if len(network.addresses) > ENTRIES_MAX or len(network.routes) > ENTRIES_MAX:
        return f"It has more than {ENTRIES_MAX} addresses or routes."
    checks: list[tuple[Callable[[str], str], str]] = [
        (_refuse_link, network.parent),
        (_refuse_link, network.interface),
        (_refuse_mac, network.mac),
    ]
    for address in network.addresses:
        checks += [(_refuse_link, address.interface), (_refuse_address, address.address)]
    for route in network.routes:
        checks += [(_refuse_link, route.interface), (_refuse_prefix, route.destination)]
        checks += [(_refuse_plain, each) for each in (route.gateway, route.source) if each]
        if not 0 <= route.metric <= _METRIC_MAX or not 0 <= route.table <= _METRIC_MAX:
            return f"The metric or the table of the route to {route.destination} is out of range."
    if network.mtu and not MTU_MIN <= network.mtu <= MTU_MAX:
        return f"mtu={network.mtu} is not between {MTU_MIN} and {MTU_MAX}."
    return next((reason for check, text in checks if (reason := check(text))), "")


_KEYS: Final = (*(str(kind) for kind in LinkKind), "address", "gateway", "mac", "mtu")
_REPEATED: Final = ("address", "gateway")


def _default_route(gateway: str) -> NetworkRoute:
    return NetworkRoute(
        destination="::/0" if ":" in gateway else "0.0.0.0/0",
        gateway=gateway,
        interface=INTERFACE,
        source="",
        metric=0,
        table=MAIN_TABLE,
        on_link=False,
    )


def _refuse_gateways(network: Network) -> str:
    """A gateway that no address reaches makes a route that the kernel refuses."""
    nets = [ipaddress.ip_interface(each.address).network for each in network.addresses]
    for route in network.routes:
        gateway = ipaddress.ip_address(route.gateway)
        if not gateway.is_link_local and not any(gateway in net for net in nets):
            return f"gateway={route.gateway} is not in the network of an address."
    families = [":" in route.gateway for route in network.routes]
    return "It has two gateways of one family." if len(families) != len(set(families)) else ""


def _refuse_link(name: str) -> str:
    return "" if _LINK.fullmatch(name) else f"{name[:40]!r} is no name of an interface."


def _refuse_mac(mac: str) -> str:
    if not mac:
        return ""
    if not _MAC.fullmatch(mac) or int(mac[:2], 16) & 1 or mac == "00:00:00:00:00:00":
        return f"mac={mac[:40]} is no address of one interface, like 02:00:00:00:00:05."
    return ""


def _refuse_address(text: str) -> str:
    try:
        address = ipaddress.ip_interface(text)
    except ValueError:
        return f"address={text[:80]} is no address with its prefix, like 10.0.0.5/24 or fd00::5/64."
    if "/" not in text or "%" in text:
        return f"address={text[:80]} needs its prefix, like {address.ip}/{'64' if ':' in text else '24'}."
    if address.is_multicast or address.is_unspecified:
        return f"address={text[:80]} cannot be the address of an interface."
    return ""


def _refuse_prefix(text: str) -> str:
    try:
        ipaddress.ip_network(text)
    except ValueError:
        return f"{text[:80]!r} is no destination of a route."
    return "" if "%" not in text else f"{text[:80]!r} is no destination of a route."


def _refuse_plain(text: str) -> str:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return f"{text[:80]!r} is no IP address."
    return "" if "%" not in text else f"{text[:80]!r} is no IP address."
