"""Make a job's network: the namespace, its interface, addresses and routes; and join it to the host's.

Rules:
- Until join() no frame comes in: a packet for a connection that is not restored yet would be answered with a reset.
- What has addresses of IPv6 gets them without duplicate address detection: a tentative address cannot be used, and
  connections that come back cannot wait for it.
- Addresses are given, never learnt: the namespace ignores router advertisements.
Source: ip-link(8); drivers/net/macvlan.c (mode source with an empty list takes no frame in).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from ckpt.errors import CommandFailed, FeatureMissing
from ckpt.host.network.announcing import announce
from ckpt.host.network.iproute import ask, configure
from ckpt.host.network.namespace import new_namespace, within
from ckpt.model.network import LOOPBACK, LinkKind, Network, NetworkRoute
from ckpt.units import JobName

HOST_LINK_PREFIX: Final = "ckpt"
MARK: Final = "ckpt:"
"""With this the alias of the interface begins; the rest is how `ckpt run --net` would name its kind and parent."""

_NAME_DIGITS: Final = 11
"""With the prefix 15 characters, the most that the name of an interface may have."""

_ACCEPT_RA: Final = "/proc/sys/net/ipv6/conf/{}/accept_ra"


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltNetwork:
    """A network that stands, not yet joined; it lives as long as `namespace`, a descriptor, or a process in it."""

    network: Network
    namespace: int
    host_link: str

    def join(self) -> None:
        """Let frames in and out, and tell the neighbours where its addresses are now.

        Raises:
            CommandFailed: the host's bridge or interface does not take it.
        """
        match self.network.kind:
            case LinkKind.BRIDGE:
                configure([f"link set {self.host_link} master {self.network.parent}"])
            case LinkKind.MACVLAN:
                configure([f"link set {self.network.interface} type macvlan mode bridge"], self.namespace)
        # Whom it has asked for in vain until now it would ask for again only after a second.
        configure([f"neighbour flush dev {self.network.interface}"], self.namespace)
        announce(self.network, self.namespace)

    def close(self) -> None:
        """Let go of it."""
        os.close(self.namespace)

    def remove(self) -> None:
        """Remove its interface, which else stays as long as the kernel sends for somebody who was killed."""
        with suppress(CommandFailed):
            configure([f"link delete {self.network.interface}"], self.namespace)


def host_link_of(state: str, job: JobName, number: int = 0) -> str:
    """The name of the host's side of the job's interface, or of that of another namespace of a workload."""
    digest = hashlib.sha256(f"{state}\0{job}\0{number}".encode()).hexdigest()
    return HOST_LINK_PREFIX + digest[:_NAME_DIGITS]


def build(network: Network, host_link: str, *, restored: bool) -> BuiltNetwork:
    """Make the network; the caller, who holds the job's lock, closes it.

    Args:
        network: One that refuse_network() does not refuse.
        host_link: host_link_of() the job; what still has this name is of an earlier life of it, and removed.
        restored: Whether all its addresses are listed, also those that the kernel gives.

    Raises:
        FeatureMissing: the host has no such bridge or interface, or no ip.
        CommandFailed: the kernel refuses a part of it.
        OsRefused: it makes no namespace.
    """
    links = {str(link.get("ifname")): link for link in ask("link show")}
    check_parent(network, links)
    if host_link in links:
        with suppress(CommandFailed):  # it goes by itself, too, when the kernel gets to it
            configure([f"link delete {host_link}"])
    namespace = new_namespace()
    try:
        _refuse_router_advertisements(namespace)
        configure(_outside(network, host_link, namespace), passed=(namespace,))
        configure(list(_inside(network, restored=restored)), namespace)
    except BaseException:
        os.close(namespace)
        raise
    return BuiltNetwork(network=network, namespace=namespace, host_link=host_link)


def check_parent(network: Network, links: dict[str, dict[str, Any]]) -> None:
    """Do nothing if the host has what the network hangs on; `links` are the host's, by name.

    Raises:
        FeatureMissing: it has not.
    """
    found = links.get(network.parent)
    kind = found.get("linkinfo", {}).get("info_kind") if found else None
    match network.kind:
        case LinkKind.BRIDGE:
            if kind != "bridge":
                raise FeatureMissing(
                    feature=f"a bridge of the name {network.parent}",
                    remedy=f"Make it: 'ip link add {network.parent} type bridge && ip link set {network.parent} up'."
                    if found is None
                    else f"{network.parent} is an interface of another kind; name a bridge, or use macvlan=.",
                )
        case LinkKind.MACVLAN:
            if found is None:
                raise FeatureMissing(
                    feature=f"an interface of the name {network.parent}",
                    remedy="'ip link' lists those that it has.",
                )


def _outside(network: Network, host_link: str, namespace: int) -> list[str]:
    place = f"netns /proc/self/fd/{namespace}"
    mac = f"address {network.mac}" if network.mac else ""
    mtu = f"mtu {network.mtu}" if network.mtu else ""
    match network.kind:
        case LinkKind.BRIDGE:
            # Of the host's side the host's own network sees nothing: it has no address, not even a local one.
            none = [f"link set {host_link} addrgenmode none"] if os.path.exists("/proc/sys/net/ipv6") else []
            return [
                f"link add {host_link} address {_host_mac(host_link)} {mtu} type veth peer name {network.interface} {mac} {mtu} {place}",
                *none,
                f"link set {host_link} up",
            ]
        case LinkKind.MACVLAN:
            return [
                f"link add link {network.parent} name {network.interface} {mac} {mtu} {place} type macvlan mode source"
            ]


def _host_mac(host_link: str) -> str:
    """A bridge that was given no address takes the lowest of its ports': ours is above all, so that it stays."""
    return ":".join(("fe", *(f"{byte:02x}" for byte in hashlib.sha256(host_link.encode()).digest()[:5])))


def _inside(network: Network, *, restored: bool) -> Iterator[str]:
    name = network.interface
    if restored and any(":" in each.address for each in network.addresses):
        yield f"link set {name} addrgenmode none"
    yield f"link set {name} alias {MARK}{network}"
    yield f"link set {LOOPBACK} up"
    yield f"link set {name} up"
    for address in network.addresses:
        more = "nodad" if ":" in address.address else "broadcast +" if address.interface == name else ""
        yield f"address replace {address.address} dev {address.interface} {more}"
    # A gateway must be reachable when its route is made.
    for route in sorted(network.routes, key=lambda route: bool(route.gateway)):
        yield _route(route)


def _route(route: NetworkRoute) -> str:
    is_v6 = ":" in route.destination
    words = [f"route replace {route.destination}"]
    if route.gateway:
        words.append(f"via {'inet6 ' if ':' in route.gateway and not is_v6 else ''}{route.gateway}")
    words.append(f"dev {route.interface}")
    words += [f"src {route.source}"] if route.source else []
    words += [f"metric {route.metric}"] if route.metric else []
    words += [f"table {route.table}"]
    words += ["onlink"] if route.on_link else []
    return " ".join(words)


def _refuse_router_advertisements(namespace: int) -> None:
    with within(namespace):
        for each in ("all", "default"):
            with suppress(FileNotFoundError), open(_ACCEPT_RA.format(each), "w", encoding="ascii") as stream:
                stream.write("0")
