"""A bridge on this host and clients on it, in network namespaces of their own; gone with the test."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

from harness.waiting import await_condition

# Sends a byte, checks that the answer counts one up, and writes down how long it took; for ever.
_CLIENT = """
import socket, sys, time
answers = open(sys.argv[3], "w", buffering=1)
with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=30) as connection:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    stream = connection.makefile("rb")
    last = 0
    while True:
        asked = time.monotonic()
        connection.sendall(b"x")
        answer = int(stream.readline())
        assert answer == last + 1, (answer, last)
        last = answer
        print(last, time.monotonic() - asked, file=answers)
        time.sleep(0.005)
"""

# Connects again and again, and writes down what it is told of each of the connections.
_KNOCKING = """
import errno, socket, sys, time
errors = open(sys.argv[3], "w", buffering=1)
opened = []
while True:
    opened.append(socket.socket())
    opened[-1].setblocking(False)
    codes = [opened[-1].connect_ex((sys.argv[1], int(sys.argv[2])))]
    codes += [each.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) for each in opened]
    for code in codes:
        if code not in (0, errno.EINPROGRESS):
            print(errno.errorcode[code], file=errors)
    del opened[:-300]
    print("knocked", file=errors)
    time.sleep(0.001)
"""

# Counts the bytes of each of its connections, and answers each with the count.
SERVER = """
import socket, sys, threading
def serve(connection):
    count = 0
    while connection.recv(1):
        count += 1
        connection.sendall(b"%d\\n" % count)
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
with socket.create_server((sys.argv[1], int(sys.argv[2])), family=family) as server:
    while True:
        threading.Thread(target=serve, args=(server.accept()[0],), daemon=True).start()
"""


def ip(*words: object) -> str:
    """What `ip WORDS…` says."""
    done = subprocess.run(["ip", *map(str, words)], check=False, capture_output=True, text=True)
    assert done.returncode == 0, (words, done.stderr)
    return done.stdout


class Client:
    """A program in a namespace on the bridge that talks to a server all the time, and checks each answer."""

    def __init__(self, namespace: str, server: str, port: int, answers: Path) -> None:
        self._answers = answers
        self._errors = answers.with_suffix(".err")
        place = ("ip", "netns", "exec", namespace)
        with self._errors.open("wb") as errors:
            self._process = subprocess.Popen(
                [*place, sys.executable, "-I", "-S", "-c", _CLIENT, server, str(port), str(answers)],
                stderr=errors,
            )

    @property
    def count(self) -> int:
        """How many answers came, all of them right."""
        assert self._process.poll() is None, self._errors.read_text()
        return len(self._lines())

    @property
    def longest_s(self) -> float:
        """The longest that an answer took."""
        return max((float(line.split()[1]) for line in self._lines()), default=0.0)

    def await_more(self, timeout_s: float = 60) -> None:
        """Wait until answers have come that were asked for from now on."""
        wanted = self.count + 20
        await_condition(lambda: self.count >= wanted, "answers at the client", timeout_s=timeout_s)

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()

    def _lines(self) -> list[str]:
        text = self._answers.read_text() if self._answers.exists() else ""
        return text[: text.rfind("\n") + 1].splitlines()


class Knocking:
    """A program in a namespace on the bridge that connects to a server all the time."""

    def __init__(self, namespace: str, server: str, port: int, told: Path) -> None:
        self._told = told
        place = ("ip", "netns", "exec", namespace)
        self._process = subprocess.Popen(
            [*place, sys.executable, "-I", "-S", "-c", _KNOCKING, server, str(port), str(told)]
        )
        await_condition(lambda: told.exists() and told.read_text().count("knocked") > 20, "it to knock")

    def errors(self) -> set[str]:
        """End it; gives the names of all errors that it got."""
        self.close()
        return set(self._told.read_text().split()) - {"knocked"}

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()


class Bridge:
    """The bridge; a context manager that removes it, with the namespaces and clients on it."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self._folder = folder
        self._namespaces: list[str] = []
        self._clients: list[Client | Knocking] = []
        self._uplinks: list[str] = []

    def __enter__(self) -> Self:
        ip("link", "add", self.name, "type", "bridge")
        ip("link", "set", self.name, "up")
        return self

    def __exit__(self, *_: object) -> None:
        for client in self._clients:
            client.close()
        for namespace in self._namespaces:
            ip("netns", "delete", namespace)
        for link in (*self._uplinks, self.name):
            ip("link", "delete", link)

    def namespace(self, *addresses: str) -> str:
        """A new namespace on the bridge, with these addresses."""
        name = f"{self.name}-{len(self._namespaces)}"
        ip("netns", "add", name)
        self._namespaces.append(name)
        outside = f"{self.name}p{len(self._namespaces)}"
        ip("link", "add", outside, "type", "veth", "peer", "name", "eth0", "netns", name)
        ip("link", "set", outside, "up", "master", self.name)
        for link in ("lo", "eth0"):
            ip("-n", name, "link", "set", link, "up")
        for address in addresses:
            ip("-n", name, "address", "add", address, "dev", "eth0", *(("nodad",) if ":" in address else ()))
        return name

    def uplink(self) -> str:
        """An interface of the host that leads to the bridge."""
        inside, outside = f"{self.name}u", f"{self.name}v"
        ip("link", "add", inside, "type", "veth", "peer", "name", outside)
        self._uplinks.append(inside)
        ip("link", "set", outside, "up", "master", self.name)
        ip("link", "set", inside, "up")
        return inside

    def client(self, namespace: str, server: str, port: int) -> Client:
        """A client there, which is connected when this returns."""
        client = Client(namespace, server, port, self._folder / f"client{len(self._clients)}")
        self._clients.append(client)
        client.await_more()
        return client

    def knocking(self, namespace: str, server: str, port: int) -> Knocking:
        """One who connects all the time there, and does so when this returns."""
        knocking = Knocking(namespace, server, port, self._folder / f"knocking{len(self._clients)}")
        self._clients.append(knocking)
        return knocking

    def ports(self) -> list[str]:
        """The names of the interfaces on the bridge that ckpt made."""
        found: list[dict[str, Any]] = json.loads(ip("-j", "link", "show", "master", self.name) or "[]")
        return sorted(each["ifname"] for each in found if each.get("ifname", "").startswith("ckpt"))


def links() -> set[str]:
    """The names of this host's interfaces."""
    return {each["ifname"] for each in json.loads(ip("-j", "link", "show")) if each}
