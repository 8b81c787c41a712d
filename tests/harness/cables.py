"""The network of the lab: cables between hosts, and bridges on them.

Rule: all of it lives in the hosts' network namespaces, and ends with them.
"""

from __future__ import annotations

import subprocess

from harness.lab import Host

BRIDGE = "br0"


class Cable:
    """A cable between two hosts; each end is a host and the name of the interface there."""

    def __init__(self, one: tuple[Host, str], other: tuple[Host, str]) -> None:
        self._ends = (one, other)
        (here, name), (there, its_name) = self._ends
        peer = ("peer", "name", its_name, "netns", str(there.init))
        in_network(here, "link", "add", name, "type", "veth", *peer)
        self.up()

    def address(self, host: Host, address: str) -> None:
        """Give this address, with the length of its prefix, to the host's end."""
        in_network(host, "addr", "add", address, "dev", dict(self._ends)[host])

    def up(self) -> None:
        for host, name in self._ends:
            in_network(host, "link", "set", name, "up")

    def down(self) -> None:
        """Pull it out: what is sent is lost from now on, and no connection is closed by that."""
        host, name = self._ends[1]
        in_network(host, "link", "set", name, "down")


def add_bridge(host: Host, address: str) -> None:
    """Give the host the bridge BRIDGE with this address, which forwards from the start."""
    in_network(host, "link", "add", BRIDGE, "type", "bridge", "forward_delay", "0")
    in_network(host, "addr", "add", address, "dev", BRIDGE)
    in_network(host, "link", "set", BRIDGE, "up")


def join_bridges(one: Host, other: Host) -> None:
    """Lay a cable between the bridges of two hosts."""
    ends = ((one, f"to-{other.name}"), (other, f"to-{one.name}"))
    Cable(*ends)
    for host, name in ends:
        in_network(host, "link", "set", name, "master", BRIDGE)


def in_network(host: Host, *words: str) -> str:
    """Run `ip WORDS…` in the network of the host; returns what it printed."""
    # In the machine's own PID namespace: only there another host's init has a number.
    command = ["nsenter", f"--net=/proc/{host.init}/ns/net", "ip", *words]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, f"{host.name}: ip {' '.join(words)}: {done.stderr}"
    return done.stdout
