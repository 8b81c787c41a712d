"""A cable between two hosts of the lab, and sshd on one of them or on both: with keys of the test's own.

Rule: all of it lives in the hosts' namespaces and cgroups, and ends with them.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from harness.cables import Cable
from harness.lab import Host
from harness.traces import Traces

CLIENT, SERVER = "10.99.0.1", "10.99.0.2"

_CONFIG = """
ListenAddress {address}
HostKey {folder}/{key}
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
    """sshd on `server`, which `client` reaches at SERVER; with serve(), also the other way round."""

    def __init__(self, traces: Traces, client: Host, server: Host) -> None:
        self.folder = traces.folder / "ssh"
        self.folder.mkdir()
        self.cable = Cable((client, "out"), (server, "out"))
        self.cable.address(client, f"{CLIENT}/24")
        self.cable.address(server, f"{SERVER}/24")
        self.known_hosts = self.folder / "known-hosts"
        self._new_key("client-key")
        self.serve(server, SERVER, "host-key")

    def serve(self, host: Host, address: str, key: str) -> None:
        """Let sshd listen at this address of the host, with a new host key, which is known from now on."""
        with self.known_hosts.open("a") as known:
            known.write(f"{address} {self._new_key(key)}\n")
        config, log = self.folder / f"{key}-config", self.folder / f"{key}-log"
        config.write_text(_CONFIG.format(address=address, folder=self.folder, key=key))
        host.must_run("mkdir", "-p", "/run/sshd")
        # It goes into the background by itself when it listens.
        done = host.run("/usr/sbin/sshd", "-f", config, "-E", log)
        assert done.returncode == 0, done.stderr + log.read_text()

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
