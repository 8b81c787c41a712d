"""The programs of images/subjects/, started as a user would start them, and asked whether all is well.

Every kind of program answers the same three questions: how far it is, whether it goes on, and whether it is
right in all that it holds, as seen from inside.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
from abc import ABC, abstractmethod
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, ClassVar

import pytest
from harness.cgroups import Cgroup
from harness.processes import MARK, describe, reap_in_background
from harness.ticks import TickLog
from harness.traces import Traces
from harness.waiting import await_condition

FOLDER = Path(__file__).parents[2] / "images/subjects"
PYTHON = sys.executable


def compile_subjects(into: Path) -> Path:
    """Compile the C subjects; returns the folder that they are in."""
    for source in sorted(FOLDER.glob("*.c")):
        target = into / source.stem
        command = ["gcc", "-O2", "-pthread", "-Wall", "-Wextra", "-Werror", "-o", target, source]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    return into


class Program(ABC):
    """One subject, running or dumped."""

    #: Whether it can be taken back to an earlier moment with its files as they are now.
    can_go_back: ClassVar[bool] = True
    #: The least numbers of processes and threads that make it worth its name.
    processes_min: ClassVar[int] = 1

    def __init__(self, folder: Path, mark: str, compiled: Path) -> None:
        self.folder = folder
        self.log = TickLog(folder / "log")
        self.pid = 0
        self.taken_back = 0
        # The last answer of a program that can be asked.
        self._last: dict[str, Any] = {}
        self._remembered: dict[str, Any] = {}
        self._mark = mark
        self._compiled = compiled

    @property
    def name(self) -> str:
        return type(self).__name__.lower()

    @abstractmethod
    def command(self) -> list[str]:
        """How it is started."""

    def await_ready(self) -> None:
        """Wait until it does what it is for."""
        self.log.await_more(5)

    def progress(self) -> int:
        """How far it is; goes back when the program is taken back."""
        return int(self.log.last()["tick"])

    def await_progress(self, more: int = 25) -> None:
        """Wait until it has gone on: far enough that everything in it was used and checked again."""
        self.log.await_more(more)

    def check(self) -> None:
        """All that it holds is right, and nothing was lost or done twice."""
        self.log.check(taken_back=self.taken_back)

    def remember(self) -> None:
        """It is about to be dumped: this is what it will be taken back to."""
        self._remembered = self._last

    def was_taken_back(self) -> None:
        """It is now again as it was when it was remembered."""
        self._last = self._remembered
        self.taken_back += 1


class Tree(Program):
    """images/subjects/tree.py."""

    can_go_back = False
    processes_min = 3

    def command(self) -> list[str]:
        options = ["--tick-ms", "20", "--dir", str(self.folder), "--shm", f"{self._mark}-{self.folder.name}"]
        return [PYTHON, str(FOLDER / "tree.py"), "--log", str(self.log.path), *options]


class Shell(Program):
    """images/subjects/shell.sh."""

    processes_min = 2

    def command(self) -> list[str]:
        return [str(FOLDER / "shell.sh"), str(self.log.path)]

    def check(self) -> None:
        super().check()
        TickLog(Path(f"{self.log.path}.background")).check(taken_back=self.taken_back)


class Events(Program):
    """images/subjects/events.c."""

    def command(self) -> list[str]:
        watched = self.folder / "watched"
        watched.mkdir(exist_ok=True)
        return [str(self._compiled / "events"), str(self.log.path), str(watched)]

    def await_progress(self, more: int = 85) -> None:
        """Far enough for two of its own checks, each of which covers all sources."""
        super().await_progress(more)


class Clocks(Program):
    """images/subjects/clocks.c: its timers fire after `timers_s`, its sleepers wake after `sleep_s`."""

    timers_s = 3600.0
    sleep_s = 3600.0

    def command(self) -> list[str]:
        return [str(self._compiled / "clocks"), str(self.log.path), str(self.timers_s), str(self.sleep_s)]


class Ballast(Program):
    """images/subjects/ballast.py: 32 MiB, of which 10 MiB/s are dirtied."""

    def command(self) -> list[str]:
        options = ["--log", str(self.log.path), "--dirty", "10", "--tick-ms", "20"]
        return [PYTHON, str(FOLDER / "ballast.py"), "32", *options]


class Server(Program):
    """images/subjects/server.js: an entry put into its memory before every question."""

    def __init__(self, folder: Path, mark: str, compiled: Path) -> None:
        super().__init__(folder, mark, compiled)
        self._port = free_port()
        self._put: dict[str, str] = {}

    def command(self) -> list[str]:
        # Some builds of node use io_uring, which CRIU cannot dump, unless told not to; see await_ready().
        options = [str(FOLDER / "server.js"), str(self.log.path), str(self._port)]
        return ["/usr/bin/env", "UV_USE_IO_URING=0", installed("node"), *options]

    def await_ready(self) -> None:
        super().await_ready()
        # As a job it is the child of the init.
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        held = [fd for pid in (self.pid, *children) for fd in Path(f"/proc/{pid}/fd").iterdir()]
        if any(os.readlink(fd) == "anon_inode:[io_uring]" for fd in held):
            # Debian 13 has a libuv (1.50) that opens a ring for epoll whatever UV_USE_IO_URING says.
            pytest.skip("this node holds io_uring, which CRIU cannot dump")
        for number in range(10):
            self._ask("PUT", f"/key{number}", f"value {number}")
        self._last = self._ask("GET", "/")
        assert self._last["entries"] == 10

    def check(self) -> None:
        super().check()
        now = self._ask("GET", "/")
        assert now["entries"] == self._last["entries"]
        assert now["digest"] == self._last["digest"]
        assert now["requests"] == self._last["requests"] + 1, "it answered a request that it forgot"
        self._last = now

    def _ask(self, method: str, path: str, body: str | None = None) -> dict[str, Any]:
        with closing(http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)) as connection:
            connection.request(method, path, body)
            response = connection.getresponse()
            assert response.status == 200
            answer: dict[str, Any] = json.loads(response.read())
        return answer


class Redis(Program):
    """redis-server with keys, an append-only file, a TCP port and a unix socket; progress is a counter."""

    keys = 1000

    def __init__(self, folder: Path, mark: str, compiled: Path) -> None:
        super().__init__(folder, mark, compiled)
        self._port = free_port()
        self._socket = folder / "redis.sock"

    def command(self) -> list[str]:
        options = {
            "port": self._port,
            "bind": "127.0.0.1",
            "unixsocket": self._socket,
            "dir": self.folder,
            "logfile": self.folder / "redis.log",
            "appendonly": "yes",
            "save": "",
            "daemonize": "no",
            # The title would be written over the environment, and the mark with it.
            "set-proc-title": "no",
        }
        return [
            installed("redis-server"),
            *(word for name, value in options.items() for word in (f"--{name}", str(value))),
        ]

    def await_ready(self) -> None:
        await_condition(self._listens, f"{self._socket} to be listened on")
        commands = [("SET", f"key:{number}", f"value {number}" * 20) for number in range(self.keys)]
        assert self._ask(*commands) == ["OK"] * self.keys
        self._ask(("INCR", "counter"))

    def _listens(self) -> bool:
        # Its name is there before it listens.
        with suppress(FileNotFoundError, ConnectionRefusedError):
            return self._ask(("PING",)) == ["PONG"]
        return False

    def progress(self) -> int:
        return int(self._ask(("GET", "counter"))[0])

    def await_progress(self, more: int = 25) -> None:
        before = self.progress()
        after = self._ask(*[("INCR", "counter")] * more)
        assert after == list(range(before + 1, before + more + 1))

    def check(self) -> None:
        values = self._ask(*[("GET", f"key:{number}") for number in range(self.keys)])
        assert values == [f"value {number}" * 20 for number in range(self.keys)]
        with socket.create_connection(("127.0.0.1", self._port), timeout=60) as connection:
            connection.sendall(b"PING\r\n")
            assert connection.recv(100) == b"+PONG\r\n"
        # Its database is what its log of changes says, as redis itself sees it.
        info = self._ask(("INFO", "persistence"))[0]
        assert "aof_last_write_status:ok" in info

    def _ask(self, *commands: tuple[str, ...]) -> list[Any]:
        """The answers to these commands, over the unix socket, the connection closed on both sides after."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(10)
            # An address of a unix socket is short, a test's folder is long.
            connection.connect(f"/proc/self/fd/{(folder := os.open(self.folder, os.O_PATH))}/redis.sock")
            os.close(folder)
            connection.sendall(b"".join(map(_resp, [*commands, ("QUIT",)])))
            with connection.makefile("rb") as stream:
                answers = [_read_resp(stream) for _ in commands]
                assert stream.read() == b"+OK\r\n"
        return answers


def _resp(command: tuple[str, ...]) -> bytes:
    words = [word.encode() for word in command]
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)


def _read_resp(stream: Any) -> Any:
    kind, rest = (line := stream.readline())[:1], line[1:-2]
    match kind:
        case b"+":
            return rest.decode()
        case b":":
            return int(rest)
        case b"$" if rest == b"-1":
            return None
        case b"$":
            return stream.read(int(rest) + 2)[:-2].decode()
    raise AssertionError(f"redis says {line!r}")


def installed(program: str) -> str:
    """The path of a program that the tests need."""
    path = shutil.which(program)
    assert path is not None, f"{program} is not installed: run scripts/setup --dev"
    return path


def free_port() -> int:
    """A TCP port of the loopback that nobody has now, outside the range of outgoing connections."""
    with open("/proc/sys/net/ipv4/ip_local_port_range") as ports:
        first = int(ports.read().split()[0])
    for _ in range(1000):
        port = int.from_bytes(os.urandom(2), "big") % (first - 10000) + 10000
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("no free port")


PROGRAMS: dict[str, type[Program]] = {
    kind.__name__.lower(): kind for kind in (Tree, Shell, Server, Redis, Events, Clocks, Ballast)
}


class Workload:
    """Programs in one cgroup, each in a session of its own, in a folder of its own."""

    def __init__(self, traces: Traces, compiled: Path, suffix: str = "") -> None:
        self._traces = traces
        self._compiled = compiled
        self._suffix = suffix
        self.cgroup: Cgroup = traces.cgroup(suffix)
        self.programs: list[Program] = []

    def new(self, kind: str | type[Program]) -> Program:
        """A program that is not started yet."""
        kind = PROGRAMS[kind] if isinstance(kind, str) else kind
        folder = self._traces.folder / f"{kind.__name__.lower()}{self._suffix}{len(self.programs)}"
        folder.mkdir()
        program = kind(folder, self._traces.mark, self._compiled)
        self.programs.append(program)
        return program

    def start(self, kind: str | type[Program]) -> Program:
        """Start a program in the cgroup and wait until it is at work."""
        program = self.new(kind)
        program.pid = self.spawn(program.command(), program.folder)
        program.await_ready()
        return program

    def spawn(self, command: list[str], folder: Path) -> int:
        """Start any command in the cgroup, in its own session, away from every terminal; returns its pid."""
        into_cgroup = 'echo $$ >"$0/cgroup.procs" && exec "$@"'
        with open(folder / "out", "ab") as out:
            process = subprocess.Popen(
                ["/bin/sh", "-c", into_cgroup, str(self.cgroup), *command],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                cwd=folder,
                env=subject_environ(self._traces.mark),
                start_new_session=True,
            )
        reap_in_background(process)
        return process.pid

    def pids(self) -> list[int]:
        """Every process in the cgroup."""
        return self.cgroup.pids()

    def kill(self) -> None:
        """End all of it at once, as a crash would, and wait until the pids are free."""
        self.cgroup.kill()
        self.await_empty()

    def await_empty(self) -> None:
        """Wait until nothing is left in it; what is restored needs the pids, so zombies count."""
        members = self.cgroup.members
        await_condition(lambda: not members(), lambda: f"the end of {describe(members())}")

    def check(self) -> None:
        """Every program goes on, and is right."""
        for program in self.programs:
            program.await_progress()
        for program in self.programs:
            program.check()


def subject_environ(mark: str) -> dict[str, str]:
    """A small environment with the mark in it."""
    return {
        MARK: mark,
        "PATH": os.environ["PATH"],
        "LC_ALL": "C.UTF-8",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
