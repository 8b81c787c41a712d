"""Take the network of a frozen job off the host's, and put it back: so that one address is never in two places.

Rules:
- Detached, no frame of the namespace reaches the network of the host, and none of that the namespace.
- What is detached is written down as a step of the journal, which is all that is needed to attach it again.
- The namespace of a workload that was killed is not attached any more.
"""

from __future__ import annotations

import os
from contextlib import suppress

from ckpt.errors import CommandFailed
from ckpt.host.journal import NetworkDetached
from ckpt.host.network.announcing import announce
from ckpt.host.network.building import HOST_LINK_PREFIX
from ckpt.host.network.iproute import ask, configure
from ckpt.host.network.namespace import namespace_of
from ckpt.host.network.reading import read_network
from ckpt.host.process_table import is_alive, process_ref
from ckpt.model.network import LinkKind
from ckpt.units import Pid


def step_for(pid: Pid) -> NetworkDetached | None:
    """What would have to be noted before the network of this process is detached; None if it has none of ours.

    Raises:
        CommandFailed, FeatureMissing: ip does not tell.
    """
    process, read = process_ref(pid), read_network(pid)
    if process is None or read is None:
        return None
    link = read.network.interface
    if read.network.kind is LinkKind.BRIDGE:
        link = next(
            (
                str(each["ifname"])
                for each in ask("link show")
                if each.get("ifindex") == read.peer_index
                and str(each.get("ifname")).startswith(HOST_LINK_PREFIX)
            ),
            "",
        )
    if not link:
        return None
    return NetworkDetached(
        pid=process.pid,
        start_ticks=process.start_ticks,
        network=str(read.network.kind),
        parent=read.network.parent,
        link=link,
    )


def detach(step: NetworkDetached) -> None:
    """Let no frame in or out; safe to repeat.

    Raises:
        CommandFailed, FeatureMissing: it could not be done.
        OSError: the process has ended.
    """
    match LinkKind(step.network):
        case LinkKind.BRIDGE:
            configure([f"link set {step.link} nomaster"])
        case LinkKind.MACVLAN:
            # Nothing comes in; and what would go out is an answer, or held back by CRIU's lock.
            _inside(step, f"link set {step.link} type macvlan mode source")


def attach(step: NetworkDetached) -> str:
    """Undo detach(), and tell the neighbours; gives what was done, "" if the workload has ended; safe to repeat.

    Raises:
        CommandFailed, FeatureMissing: it could not be done.
    """
    if not is_alive(step.process):
        return ""
    try:
        match LinkKind(step.network):
            case LinkKind.BRIDGE:
                configure([f"link set {step.link} master {step.parent}"])
            case LinkKind.MACVLAN:
                _inside(step, f"link set {step.link} type macvlan mode bridge")
    except (CommandFailed, OSError):
        if is_alive(step.process):
            raise
        return ""
    _announce(step.pid)
    return f"joined its network to {step.parent} again"


def remove(step: NetworkDetached) -> str:
    """Remove the interface of what was restored and is killed; gives what was done. Safe to repeat.

    It would go by itself, but not before the kernel has given up what it still sends for the killed.
    """
    with suppress(CommandFailed, OSError):
        match LinkKind(step.network):
            case LinkKind.BRIDGE:
                remove_link(step.link)
            case LinkKind.MACVLAN:
                _inside(step, f"link delete {step.link}")
        return f"removed its network on {step.parent}"
    return ""


def remove_link(name: str) -> None:
    """Remove an interface of this host.

    Raises:
        CommandFailed: it is not there, or cannot be removed.
    """
    configure([f"link delete {name}"])


def _inside(step: NetworkDetached, command: str) -> None:
    namespace = namespace_of(step.pid)
    try:
        configure([command], namespace)
    finally:
        os.close(namespace)


def _announce(pid: Pid) -> None:
    read = read_network(pid)
    if read is None:
        return
    with suppress(OSError):
        namespace = namespace_of(pid)
        try:
            # Whom it has asked for in vain until now it would ask for again only after a second.
            configure([f"neighbour flush dev {read.network.interface}"], namespace)
            announce(read.network, namespace)
        finally:
            os.close(namespace)
