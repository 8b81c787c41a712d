"""A network between two hosts of the lab, and sshd on one of them: with keys of the test's own, in its folder.

Rule: all of it lives in the hosts' namespaces and cgroups, and ends with them.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from harness.lab import Host
from harness.traces import Traces

CLIENT, SERVER = "10.99.0.1", "10.99.0.2"

_CONFIG = """
ListenAddress {address}
HostKey {folder}/host-key
AuthorizedKeysFile {folder}/client-key.pub
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
UseDNS no
StrictModes no
PidFile none
"""


class SshServer:
    """sshd on `server`, which `client` reaches at SERVER."""

    def __init__(self, traces: Traces, client: Host, server: Host) -> None:
        self.folder = traces.folder / "ssh"
        self.folder.mkdir()
        _join(client, server)
        host_key, _ = self._new_key("host-key"), self._new_key("client-key")
        self.known_hosts = self.folder / "known-hosts"
        self.known_hosts.write_text(f"{SERVER} {host_key}\n")
        config = self.folder / "sshd-config"
        config.write_text(_CONFIG.format(address=SERVER, folder=self.folder))
        server.run("mkdir", "-p", "/run/sshd")
        # sshd goes into the background by itself when it listens.
        done = server.run("/usr/sbin/sshd", "-f", config, "-E", self.folder / "sshd-log")
        assert done.returncode == 0, done.stderr + (self.folder / "sshd-log").read_text()

    @property
    def options(self) -> tuple[str, ...]:
        """How ckpt is to come there."""
        return ("--identity", str(self.folder / "client-key"), "--known-hosts", str(self.known_hosts))

    def know_another_key(self) -> Path:
        """A file of known hosts with another key for the server."""
        path = self.folder / "known-hosts-wrong"
        path.write_text(f"{SERVER} {self._new_key('other-key')}\n")
        return path

    def know_nothing(self) -> Path:
        """A file of known hosts without any."""
        path = self.folder / "known-hosts-empty"
        path.touch()
        return path

    def strangers_key(self) -> Path:
        """A private key that nobody is let in with."""
        self._new_key("stranger")
        return self.folder / "stranger"

    def program(self, script: str, name: str = "ckpt") -> Path:
        """A program with this shell script, which both hosts see."""
        path = self.folder / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return path

    def _new_key(self, name: str) -> str:
        """Make a pair of keys; gives the public one."""
        path = self.folder / name
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", path], check=True)
        return " ".join(path.with_name(f"{name}.pub").read_text().split()[:2])


def _join(client: Host, server: Host) -> None:
    """A cable between the two."""
    _in_network(
        client, "link", "add", "out", "type", "veth", "peer", "name", "out", "netns", str(server.init)
    )
    for host, address in ((client, CLIENT), (server, SERVER)):
        _in_network(host, "addr", "add", f"{address}/24", "dev", "out")
        _in_network(host, "link", "set", "out", "up")


def _in_network(host: Host, *words: str) -> None:
    # In the machine's own PID namespace: only there the other host's init has a number.
    subprocess.run(["nsenter", f"--net=/proc/{host.init}/ns/net", "ip", *words], check=True)
