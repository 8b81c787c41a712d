"""The processes whose dumps are stored, and how a known share of their memory is changed.

ballast: a python process with half-compressible memory; 1 % of its pages, scattered, are written anew as wholes,
so that a delta to the former page saves nothing that compression does not.
redis: redis-server as the distribution ships it, without persistence, on a unix socket alone; 1 % of its keys
are set anew, which changes several times as many pages, most of them a little.
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

PATIENCE_S = 300
SHARE_PERCENT = 1
BALLAST = Path(__file__).resolve().parents[2] / "images/subjects/ballast.py"
REDIS_RSS_MIB = 436
REDIS_BATCH = 2000
VALUE_BYTES = 1000
WORDS_KNOWN = 4000
LOG_TAIL_BYTES = 4096


class Workload(Protocol):
    """A running process whose memory can be changed."""

    pid: int

    def change(self) -> None:
        """Change 1 % of what it holds; it has done so when this returns."""


class Ballast:
    """A running images/subjects/ballast.py."""

    def __init__(self, pid: int, log: Path, alive: Callable[[], bool]) -> None:
        self.pid = pid
        self._log = log
        self._alive = alive
        _await(lambda: self._last_tick() is not None, "ballast to be filled", alive)

    def change(self) -> None:
        before = self._scattered()
        os.kill(self.pid, signal.SIGUSR1)
        _await(lambda: self._scattered() > before, "ballast to change pages", self._alive)

    def _scattered(self) -> int:
        tick = self._last_tick()
        return int(tick["scattered_pages"]) if tick else 0

    def _last_tick(self) -> dict[str, Any] | None:
        if not self._log.exists():
            return None
        with self._log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - LOG_TAIL_BYTES))
            lines = file.read().splitlines()
        if not lines:
            return None
        tick: dict[str, Any] = json.loads(lines[-1])
        if "error" in tick:
            raise RuntimeError(f"ballast: {tick['error']}")
        return tick


class Redis:
    """A running redis-server, filled."""

    def __init__(self, pid: int, place: Path, alive: Callable[[], bool]) -> None:
        self.pid = pid
        self._place = place
        self._random = random.Random(1)  # noqa: S311  (the same keys in every run)
        self._values = Values()
        self.keys = 0
        _await((place / "redis.sock").exists, "redis to listen", alive)
        while self._rss_bytes() < REDIS_RSS_MIB << 20:
            self._set(range(self.keys, self.keys + REDIS_BATCH))
            self.keys += REDIS_BATCH

    def change(self) -> None:
        self._set(self._random.sample(range(self.keys), self.keys * SHARE_PERCENT // 100))

    def _set(self, numbers: Iterable[int]) -> None:
        self._ask([(b"SET", b"user:%08d" % number, self._values.next()) for number in numbers])

    def _rss_bytes(self) -> int:
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def _ask(self, commands: list[tuple[bytes, ...]]) -> None:
        """Give commands that answer OK; the connection is closed on both sides when this returns."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(PATIENCE_S)
            # An address of a unix socket is short, a directory's name may be long.
            folder = os.open(self._place, os.O_PATH)
            try:
                connection.connect(f"/proc/self/fd/{folder}/redis.sock")
            finally:
                os.close(folder)
            connection.sendall(b"".join(map(_resp, [*commands, (b"QUIT",)])))
            with connection.makefile("rb") as stream:
                for line in stream:
                    if line != b"+OK\r\n":
                        raise RuntimeError(f"redis says {line!r}")


class Values:
    """Records as a program keeps them: JSON with words that recur and numbers that do not; zstd -1 halves them."""

    def __init__(self) -> None:
        self._random = random.Random(2)  # noqa: S311  (the same words in every run)
        letters = "etaoinshrdlucmfwypvbgk"
        self._words = [
            "".join(self._random.choices(letters, k=self._random.randint(3, 9))) for _ in range(WORDS_KNOWN)
        ]

    def next(self) -> bytes:
        choice = self._random
        record = {
            "id": choice.getrandbits(48),
            "name": " ".join(choice.choices(self._words, k=2)),
            "token": choice.randbytes(64).hex(),
            "seen": [1_700_000_000 + choice.getrandbits(24) for _ in range(8)],
            "score": [choice.random() for _ in range(4)],
            "text": "",
        }
        text = " ".join(choice.choices(self._words, k=VALUE_BYTES // 10))
        left = VALUE_BYTES - len(json.dumps(record))
        return json.dumps(record | {"text": text[:left]}).encode()


@contextmanager
def ballast(size_mib: int, place: Path) -> Iterator[Ballast]:
    log = place / "ballast.log"
    arguments = [str(size_mib), "--log", str(log), "--scatter", str(SHARE_PERCENT)]
    with _running([sys.executable, str(BALLAST), *arguments], place) as process:
        yield Ballast(process.pid, log, lambda: process.poll() is None)


@contextmanager
def redis(place: Path) -> Iterator[Redis]:
    options = {
        "port": "0",
        "unixsocket": "redis.sock",
        "unixsocketperm": "700",
        "dir": ".",
        "save": "",
        "appendonly": "no",
        "daemonize": "no",
        "logfile": "redis.log",
    }
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    with _running(["redis-server", *words], place) as process:
        yield Redis(process.pid, place, lambda: process.poll() is None)


@contextmanager
def _running(command: list[str], place: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process in its own session, with no descriptor of ours; it is ended by its pid."""
    process = subprocess.Popen(
        command,
        cwd=place,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _await(condition: Callable[[], bool], what: str, alive: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        if not alive():
            raise RuntimeError(f"waited for {what}, and the process ended")
        if time.monotonic() > deadline:
            raise RuntimeError(f"waited {PATIENCE_S} s for {what}")
        time.sleep(0.05)


def _resp(command: tuple[bytes, ...]) -> bytes:
    return b"*%d\r\n" % len(command) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in command)
