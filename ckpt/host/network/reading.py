"""Read the network of a job's own from the kernel: as it is now, also what the job has changed.

Rules: ours is a namespace with an interface whose alias has our mark; of any other, CRIU takes care by itself. Of what
is read, only what passes refuse_network() becomes a value.
Source: ip-route(8); linux/rtnetlink.h (RTPROT_KERNEL, RT_TABLE_LOCAL).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from ckpt.host.network.building import MARK
from ckpt.host.network.iproute import ask
from ckpt.host.network.namespace import inode_of, namespace_of
from ckpt.model.network import (
    LOOPBACK,
    LinkKind,
    Network,
    NetworkAddress,
    NetworkRoute,
    refuse_network,
)
from ckpt.model.workload import Tree
from ckpt.units import Pid

_BY_KERNEL: Final = "2"
_TABLE_LOCAL: Final = 255
_MAIN: Final = {"main": 254, "default": 253, "local": _TABLE_LOCAL}
_ANY: Final = {4: "0.0.0.0/0", 6: "::/0"}
_V4_LOOPBACK: Final = "127.0.0.1/8"
_V6_LOOPBACK: Final = "::1/128"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadNetwork:
    """A network, and what else is in the namespace that a restore does not bring back, in words.

    `peer_index` is the index of the host's side: of the other end of a veth, or of the parent of a macvlan.
    """

    network: Network
    peer_index: int
    lost: tuple[str, ...]


def read_network(pid: Pid) -> ReadNetwork | None:
    """The network of our making that the process lives in; None if it lives in another one, or has ended.

    Raises:
        CommandFailed, FeatureMissing: ip does not tell.
    """
    try:
        namespace = namespace_of(pid)
    except OSError:
        return None
    try:
        if _is_ours_here(namespace):
            return None
        return _read(namespace)
    finally:
        os.close(namespace)


def networks_of(trees: Iterable[Tree]) -> tuple[Network, ...]:
    """The networks of our making that the trees live in, one for each namespace.

    Raises:
        CommandFailed, FeatureMissing: ip does not tell.
    """
    found: dict[int, Network] = {}
    for tree in trees:
        if tree.owns("net") and (read := read_network(tree.root)) is not None:
            found.setdefault(read.network.namespace, read.network)
    return tuple(found.values())


def dump_externals(networks: Iterable[Network]) -> tuple[str, ...]:
    """What CRIU is told at the dump, so that it leaves these namespaces to us."""
    return tuple(f"net[{network.namespace}]:{network.key}" for network in networks)


def _is_ours_here(namespace: int) -> bool:
    """Whether it is this process's own namespace."""
    return os.stat("/proc/thread-self/ns/net").st_ino == inode_of(namespace)


def _read(namespace: int) -> ReadNetwork | None:
    links = ask("address show", namespace)
    own = next((link for link in links if _kind_of(link) is not None), None)
    if own is None:
        return None
    kind, _, parent = str(own["ifalias"]).removeprefix(MARK).partition("=")
    name = str(own["ifname"])
    network = Network(
        namespace=inode_of(namespace),
        kind=LinkKind(kind),
        parent=parent,
        interface=name,
        mac=str(own.get("address", "")),
        mtu=int(own.get("mtu", 0)),
        addresses=tuple(
            found for link in links if link.get("ifname") in (name, LOOPBACK) for found in _addresses(link)
        ),
        routes=tuple(
            route
            for family in (4, 6)
            for route in _routes(ask(f"-{family} route show table all", namespace), family, name)
        ),
    )
    if refuse_network(network):
        return None
    others = [str(link["ifname"]) for link in links if link is not own and link.get("ifname") != LOOPBACK]
    return ReadNetwork(
        network=network,
        peer_index=int(own.get("link_index", 0)),
        lost=tuple(f"the interface {other}" for other in others if not other.startswith("sit")),
    )


def _kind_of(link: dict[str, Any]) -> LinkKind | None:
    """How the interface reaches the host's network, if we made it."""
    alias = str(link.get("ifalias", ""))
    if alias.startswith(MARK):
        with suppress(ValueError):
            return LinkKind(alias.removeprefix(MARK).partition("=")[0])
    return None


def _addresses(link: dict[str, Any]) -> Iterator[NetworkAddress]:
    for each in link.get("addr_info", []):
        text = f"{each.get('local')}/{each.get('prefixlen')}"
        if text not in (_V4_LOOPBACK, _V6_LOOPBACK):
            yield NetworkAddress(interface=str(link["ifname"]), address=text)


def _routes(found: list[dict[str, Any]], family: int, name: str) -> Iterator[NetworkRoute]:
    for each in found:
        table = str(each.get("table", "main"))
        number = _MAIN.get(table, int(table) if table.isdecimal() else 0)
        if (
            str(each.get("protocol")) in (_BY_KERNEL, "kernel")
            or number in (0, _TABLE_LOCAL)
            or each.get("type", "unicast") not in ("unicast", "1")
            or each.get("dev") not in (name, LOOPBACK)
        ):
            continue
        destination = str(each.get("dst", "default"))
        if destination == "default":
            destination = _ANY[family]
        elif "/" not in destination:
            destination += "/32" if family == 4 else "/128"
        yield NetworkRoute(
            destination=destination,
            gateway=str(each.get("gateway") or each.get("via", {}).get("host", "")),
            interface=str(each["dev"]),
            source=str(each.get("prefsrc", "")),
            metric=int(each.get("metric", 0)),
            table=number,
            on_link="onlink" in each.get("flags", []),
        )
