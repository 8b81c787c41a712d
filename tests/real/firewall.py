"""A firewall on a host of the lab, which also counts what comes in by the cable: to SSH's port, and to all others.

Rules: the loopback stays open, where CRIU tries what the kernel's TCP can do (criu/kerndat.c). All of it lives in the
host's network namespace, and ends with it.
"""

from __future__ import annotations

import json
import subprocess

from harness.lab import Host

_RULES = """
table inet lab {
    counter ssh {}
    counter others {}
    chain watched {
        type filter hook input priority 0; policy accept;
        iifname "out" tcp dport 22 counter name ssh
        iifname "out" tcp dport != 22 counter name others
    }
    chain blocked {
        type filter hook input priority 1; policy accept;
    }
}
"""


class Firewall:
    """It lets everything in until it is told otherwise."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._nft("-f", "-", rules=_RULES)

    def block(self, verdict: str) -> None:
        """Let only SSH in from now on; the verdict on all else is "drop" or "reject"."""
        self._nft(
            "add", "rule", "inet", "lab", "blocked", "iifname", "out", "tcp", "dport", "!=", "22", verdict
        )

    def unblock(self) -> None:
        """Let everything in again."""
        self._nft("flush", "chain", "inet", "lab", "blocked")

    def bytes_in(self) -> tuple[int, int]:
        """What has come in to SSH's port, and to all others."""
        said = json.loads(self._nft("--json", "list", "counters", "table", "inet", "lab"))
        found = {
            each["counter"]["name"]: each["counter"]["bytes"]
            for each in said["nftables"]
            if "counter" in each
        }
        return found["ssh"], found["others"]

    def _nft(self, *words: str, rules: str = "") -> str:
        command = ["nsenter", f"--net=/proc/{self._host.init}/ns/net", "nft", *words]
        done = subprocess.run(command, check=False, capture_output=True, text=True, input=rules)
        assert done.returncode == 0, f"{self._host.name}: nft {' '.join(words)}: {done.stderr}"
        return done.stdout
