"""Rules over needs: the networks of jobs' own.

Rule: what can be seen from here is this host; that an address is free elsewhere on the network, nobody can say.
Source: ip-link(8); linux/if_bridge.h (forward_delay is in hundredths of a second).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from typing import Any, Final

from ckpt.errors import CkptError, FeatureMissing
from ckpt.host.jobs import JobRegistry
from ckpt.host.network.building import check_parent
from ckpt.host.network.iproute import ask
from ckpt.host.network.reading import read_network
from ckpt.host.preflight.needs_rule import Here, NeedRule
from ckpt.host.preflight.rule import Found
from ckpt.model.findings import Severity
from ckpt.model.needs import Needs
from ckpt.model.network import LinkKind, Network
from ckpt.units import Pid

_MASTER_DOWN: Final = "Turn it on: 'ip link set {} up'."


def _parents(needs: Needs, here: Here) -> Iterator[Found]:
    for network in needs.networks:
        links = here.once(_links, needs)
        try:
            check_parent(network, links)
        except FeatureMissing as error:
            yield Found(
                pid=None,
                subject=str(network),
                message=f"this host lacks {error.feature}, on which the workload's network hangs",
                remedy=error.remedy,
            )
        else:
            if "UP" not in links[network.parent].get("flags", []):
                yield Found(
                    pid=None,
                    subject=str(network),
                    message=f"{network.parent}, on which the workload's network hangs, is turned off",
                    severity=Severity.WARNING,
                    remedy=_MASTER_DOWN.format(network.parent),
                )


def _spanning_trees(needs: Needs, here: Here) -> Iterator[Found]:
    for network in needs.networks:
        link = here.once(_links, needs).get(network.parent, {})
        bridge = link.get("linkinfo", {}).get("info_data", {})
        delay_s = 2 * int(bridge.get("forward_delay", 0)) / 100
        if network.kind is LinkKind.BRIDGE and bridge.get("stp_state") and delay_s:
            yield Found(
                pid=None,
                subject=str(network),
                message=f"the bridge {network.parent} runs the spanning tree protocol: it forwards nothing of a new port "
                f"for {delay_s:.0f} s",
            )


def _addresses(needs: Needs, here: Here) -> Iterator[Found]:
    for network in needs.networks:
        links = here.once(_links, needs)
        for address in _own_addresses(network):
            if str(address) in here.once(_here, needs):
                yield _used(network, str(address), "this host itself", None)
        for name, pid, other in here.once(_networks_of_jobs, needs):
            if name == needs.job or (other.kind, other.parent) != (network.kind, network.parent):
                continue
            for shared in sorted({*map(str, _own_addresses(network))} & {*map(str, _own_addresses(other))}):
                yield _used(network, shared, f"job {name}", pid)
        if network.kind is LinkKind.BRIDGE and network.parent in links:
            yield from _neighbours(network)


def _neighbours(network: Network) -> Iterator[Found]:
    """Whom the host itself has heard of, under one of the addresses and with another MAC."""
    for each in ask(f"neighbour show dev {network.parent} nud reachable"):
        mac = str(each.get("lladdr", ""))
        if str(each.get("dst")) in map(str, _own_addresses(network)) and mac and mac != network.mac:
            yield _used(network, str(each["dst"]), f"a host with the MAC address {mac}", None)


def _used(network: Network, address: str, who: str, pid: Pid | None) -> Found:
    return Found(
        pid=pid, subject=str(network), message=f"{address}, an address of the workload, belongs to {who}"
    )


def _own_addresses(network: Network) -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    """The addresses that must be nobody else's on the network."""
    found = [
        ipaddress.ip_interface(each.address).ip
        for each in network.addresses
        if each.interface == network.interface
    ]
    return [address for address in found if not address.is_link_local]


def _links(_needs: Needs, _here: Here) -> dict[str, dict[str, Any]]:
    try:
        return {str(link.get("ifname")): link for link in ask("link show")}
    except CkptError as error:
        raise OSError(error.message) from error


def _here(_needs: Needs, _here: Here) -> set[str]:
    """The addresses of this host, in its own namespace."""
    try:
        links = ask("address show")
    except CkptError as error:
        raise OSError(error.message) from error
    return {str(each.get("local")) for link in links for each in link.get("addr_info", [])}


def _networks_of_jobs(_needs: Needs, here: Here) -> list[tuple[str, Pid, Network]]:
    found = []
    for view in JobRegistry(here.state).list():
        if view.is_alive:
            try:
                read = read_network(view.record.root.pid)
            except CkptError:
                continue
            if read is not None:
                found.append((str(view.name), view.record.root.pid, read.network))
    return found


RULES: Final = (
    NeedRule(
        name="network-parent",
        severity=Severity.BLOCKER,
        title="Bridges and interfaces that networks of jobs' own hang on",
        effect="The restore is refused.",
        remedy="Make it there, connected to the network that the workload's address belongs to.",
        find=_parents,
    ),
    NeedRule(
        name="network-address",
        severity=Severity.BLOCKER,
        title="Addresses of a network of a job's own that somebody has",
        effect="Two have one address: connections break, of one or of the other.",
        remedy="Stop the other one first, or take the address from it.",
        find=_addresses,
    ),
    NeedRule(
        name="network-spanning-tree",
        severity=Severity.WARNING,
        title="Bridges that let a new port wait",
        effect="Connections stand still for that time.",
        remedy="Turn the protocol off where there is no loop: 'ip link set BRIDGE type bridge stp_state 0'.",
        find=_spanning_trees,
    ),
)
