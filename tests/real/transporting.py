"""Pages sent over a real SSH connection or the one beside it, from one host of the lab to another: by our own code, without a workload."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from hashlib import sha256

from harness.lab import CHECKOUT, Host
from harness.sshd import SERVER, SshServer
from harness.traces import Traces

# Its arguments: where to write the digest of all pages, or "" for none; after how many seconds of silence to give up.
TARGET = """
import hashlib, os, sys
from ckpt.codec.messages import PROTOCOLS, Hello
from ckpt.remote import serving
from ckpt.remote.inflow import PipeInflow
from ckpt.store.wire_compress import WireCompressor
from ckpt.store.wire_seal import WireCipher
from fakes.receptions import MemoryReception

place, silence_s = sys.argv[1], float(sys.argv[2])

class Counting(MemoryReception):
    digest, size = hashlib.sha256(), 0
    def pages(self, space, runs, content):
        self.size += len(content)
        if place:
            self.digest.update(content)
    def end_round(self, number):
        if place:
            with open(place, "w") as stream:
                stream.write(self.digest.hexdigest())
        return self.size

def write(content):
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(1, rest):]

serving.SILENCE_S, serving.ALIVE_EVERY_S = silence_s, silence_s / 10
hello = Hello(protocols=PROTOCOLS, version="0", host="there")
answers = serving.Answers(
    facts=None,
    judge=None,
    receive=Counting(),
    compressor=WireCompressor(),
    new_cipher=WireCipher,
    ssh_connection=os.environ["SSH_CONNECTION"],
)
try:
    serving.serve(PipeInflow(0, serving.ASKING), write, hello, answers)
finally:
    if place:
        open(place + ".ended", "w").close()
"""

# Its arguments: the address, the key, the known hosts, the program there, a file, the seconds of silence, after how
# much to make new keys, and "direct" to leave SSH.
SOURCE = """
import json, mmap, sys, time
from ckpt.codec.messages import PROTOCOLS, Hello
from ckpt.errors import CkptError
from ckpt.model.pages import PageRun
from ckpt.remote import packets, peer
from ckpt.remote.address import parse_address
from ckpt.remote.far_side import FarSide
from ckpt.remote.ssh import SshConnection
from ckpt.remote.way import SshOptions
from ckpt.store.wire_compress import WireCompressor
from ckpt.store.wire_seal import WireCipher

address, identity, known_hosts, program, path, silence_s, rekey_bytes, leaving = sys.argv[1:]
peer.SILENCE_S, peer.ALIVE_EVERY_S = float(silence_s), float(silence_s) / 10
packets.FastPacketizer.REKEY_BYTES = int(rekey_bytes)
with open(path, "rb") as stream:
    content = memoryview(mmap.mmap(stream.fileno(), 0, prot=mmap.PROT_READ))
hello = Hello(protocols=PROTOCOLS, version="0", host="here")
with SshConnection(parse_address(address), SshOptions(identity=identity, known_hosts=known_hosts)) as way:
    other = peer.Peer(way, program=program, own=hello, note=lambda line: print(line, file=sys.stderr))
    target = FarSide(other, WireCompressor(), "0" * 16)
    if leaving:
        assert not target.go_direct(WireCipher)
    began = time.perf_counter()
    for start in range(0, len(content), 4 << 20):
        part = content[start : start + (4 << 20)]
        target.pages("1/pagemap-1", [PageRun(start >> 12, len(part) >> 12)], part)
    received = target.end_round(0).received_bytes
    sent = {
        "received_bytes": received,
        "sent_bytes": target.sent_bytes,
        "seconds": time.perf_counter() - began,
        "cipher": way._client.get_transport().local_cipher,
    }
    print(json.dumps(sent), flush=True)
    if sys.stdin.readline():
        try:
            target.end_round(1)
        except CkptError as error:
            print(json.dumps({"slug": error.slug, "message": error.message}), flush=True)
    other.close()
"""

_NEVER = 1 << 40


@dataclass(frozen=True)
class Sent:
    """How all of it went."""

    received_bytes: int
    sent_bytes: int
    seconds: float
    cipher: str


class TransportBed:
    """Two hosts, of which `here` sends to `there` what fill() made; the test's traces take it all away."""

    def __init__(self, traces: Traces, *, silence_s: float = 30, digests: bool = True) -> None:
        self.here, self.there = Host(traces, "here"), Host(traces, "there")
        self.ssh = SshServer(traces, self.here, self.there)
        self.digest = traces.folder / "digest"
        self.content = traces.folder / "content"
        (traces.folder / "target.py").write_text(TARGET)
        self._source = traces.folder / "source.py"
        self._source.write_text(SOURCE)
        self._silence_s = silence_s
        paths = f"PYTHONPATH={CHECKOUT}:{CHECKOUT / 'tests'}"
        self._python = ("env", paths, sys.executable)
        command = " ".join(map(str, (*self._python, traces.folder / "target.py")))
        place = str(self.digest) if digests else ""
        self._program = self.ssh.program(f"exec {command} '{place}' {silence_s}", "target")

    def fill(self, size_bytes: int) -> str:
        """Make so many bytes to send, half of each page noise; gives their digest."""
        digest = sha256()
        with self.content.open("wb") as stream:
            for _ in range(size_bytes >> 20):
                piece = b"".join(os.urandom(2048) + bytes(2048) for _ in range(256))
                digest.update(piece)
                stream.write(piece)
        return digest.hexdigest()

    def limit(self, megabits: int) -> None:
        """Let the cable take no more than so many millions of bits a second, from now on."""
        rate = ("rate", f"{megabits}mbit", "burst", "256kb", "latency", "50ms")
        network = f"--net=/proc/{self.here.init}/ns/net"
        subprocess.run(
            ["nsenter", network, "tc", "qdisc", "add", "dev", "out", "root", "tbf", *rate], check=True
        )

    def start(
        self, address: str = f"root@{SERVER}", rekey_bytes: int = _NEVER, *, direct: bool = False
    ) -> subprocess.Popen[str]:
        """Let `here` send it all, beside SSH if `direct`; it then waits for a line, or for the end of its input."""
        known_hosts = self.ssh.folder / "known"
        keys = [line.split(" ", 1)[1] for line in self.ssh.known_hosts.read_text().splitlines()]
        known_hosts.write_text("".join(f"{SERVER},[{SERVER}]:2222 {key}\n" for key in keys))
        identity = self.ssh.folder / "client-key"
        command = (*self._python, self._source, address, identity, known_hosts, self._program)
        return subprocess.Popen(
            self.here.command_line(
                *command, self.content, self._silence_s, rekey_bytes, "direct" if direct else ""
            ),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def send(
        self, address: str = f"root@{SERVER}", rekey_bytes: int = _NEVER, *, direct: bool = False
    ) -> Sent:
        """Let `here` send it all, beside SSH if `direct`."""
        with self.start(address, rekey_bytes, direct=direct) as process:
            said, errors = process.communicate("", timeout=300)
        assert process.returncode == 0, errors
        return Sent(**json.loads(said))

    def send_by_ssh(self) -> float:
        """Let the system's ssh send it all, under the same cipher; gives the seconds without those of connecting."""
        connecting = self._ssh("true", "/dev/null")
        return self._ssh("cat >/dev/null", str(self.content)) - connecting

    def _ssh(self, command: str, content: str) -> float:
        options = (
            *("-c", "aes128-gcm@openssh.com", "-i", str(self.ssh.folder / "client-key")),
            *("-o", f"UserKnownHostsFile={self.ssh.known_hosts}", "-o", "BatchMode=yes"),
        )
        line = ("ssh", *options, f"root@{SERVER}", command)
        began = time.perf_counter()
        self.here.must_run("sh", "-c", '"$@" <"$0"', content, *line, timeout_s=300)
        return time.perf_counter() - began
