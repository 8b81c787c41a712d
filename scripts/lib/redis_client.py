"""A client of redis that keeps one connection, checks every answer, and never connects again.

Usage: redis_client.py fill HOST PORT MEGABYTES
       redis_client.py ask HOST PORT KEYS REPORT
       redis_client.py compare HOST PORT KEYS

"fill" stores so many megabytes of values and prints how many keys that made; "compare" reads them all, and prints how
many are what was stored. "ask" puts questions until REPORT.stop is
there: it counts, reads what was stored, and stores and reads notes of its own; in the end, or at the first answer that
is not right, it writes what it saw to REPORT as JSON. REPORT.begun is there from the first answer on.
"""

from __future__ import annotations

import hashlib
import json
import random
import socket
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

VALUE_BYTES = 10_000
BATCH = 200
NOTES = 1000
# Nothing answers while its host changes; a connection that is lost answers never.
PATIENCE_S = 60


class AnswerError(Exception):
    """An answer is not right; the text says which."""


class Client:
    """One connection."""

    def __init__(self, host: str, port: int) -> None:
        self._connection = socket.create_connection((host, port), PATIENCE_S)
        self._connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._stream = self._connection.makefile("rb")

    def ask(self, *commands: tuple[str | bytes, ...]) -> list[bytes]:
        """The answers to these commands; numbers and states as their digits and words.

        Raises:
            OSError: the connection is broken.
            AnswerError: redis refuses, or closed the connection.
        """
        self._connection.sendall(b"".join(map(_encoded, commands)))
        return [self._answer() for _ in commands]

    def _answer(self) -> bytes:
        line = self._stream.readline()
        if not line.endswith(b"\r\n"):
            raise AnswerError("the connection was closed")
        kind, rest = line[:1], line[1:-2]
        if kind == b"-":
            raise AnswerError(f"redis says {rest.decode()}")
        if kind != b"$":
            return rest
        return self._stream.read(int(rest) + 2)[:-2] if rest != b"-1" else b""


def fill(client: Client, megabytes: int) -> int:
    """Store so much; returns how many keys there are then."""
    keys = megabytes * 1_000_000 // VALUE_BYTES
    for first in range(0, keys, BATCH):
        batch = range(first, min(keys, first + BATCH))
        client.ask(*(("SET", f"value:{number}", value(number)) for number in batch))
    return keys


def ask(client: Client, keys: int, stop: Callable[[], bool], begun: Callable[[], object]) -> dict[str, Any]:
    """Put questions until `stop`; returns how many, what was wrong if anything, and the longest wait for an answer."""
    chosen = random.Random(5)  # noqa: S311 - the same questions in every run
    waits: list[float] = []
    wrong = ""
    before = int(client.ask(("INCR", "counter"))[0])
    begun()
    while not wrong and not stop():
        note, key = f"note:{len(waits) % NOTES}", chosen.randrange(keys)
        text = f"note {len(waits)}"
        asked = time.monotonic()
        try:
            count, stored, _, read = client.ask(
                ("INCR", "counter"), ("GET", f"value:{key}"), ("SET", note, text), ("GET", note)
            )
        except (OSError, AnswerError) as error:
            wrong = f"after {len(waits)} answers: {error}"
            break
        waits.append(time.monotonic() - asked)
        if int(count) != before + 1:
            wrong = f"the counter is {count.decode()} after {before}"
        elif stored != value(key):
            wrong = f"value:{key} is not what was stored"
        elif read != text.encode():
            wrong = f"{note} is {read.decode(errors='replace')!r}, not {text!r}"
        before = int(count)
        time.sleep(0.001)
    return {"answers": len(waits), "wrong": wrong, "longest_ms": max(waits, default=0) * 1000}


def compare(client: Client, keys: int) -> int:
    """How many of the stored values are right."""
    found = 0
    for first in range(0, keys, BATCH):
        batch = range(first, min(keys, first + BATCH))
        answers = client.ask(*(("GET", f"value:{number}") for number in batch))
        found += sum(map(bytes.__eq__, answers, map(value, batch)))
    return found


def value(number: int) -> bytes:
    """What is stored under a number: half noise, half text."""
    noise = hashlib.shake_128(str(number).encode()).digest(VALUE_BYTES // 2)
    text = f"this is value {number} of many. ".encode()
    return noise + (text * (VALUE_BYTES // len(text)))[: VALUE_BYTES - len(noise)]


def _encoded(command: Iterable[str | bytes]) -> bytes:
    words = [word.encode() if isinstance(word, str) else word for word in command]
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)


def main(act: str, host: str, port: str, amount: str, report: str = "") -> int:
    client = Client(host, int(port))
    if act in ("fill", "compare"):
        print(fill(client, int(amount)) if act == "fill" else compare(client, int(amount)))
        return 0
    stop, begun = Path(f"{report}.stop"), Path(f"{report}.begun")
    found = ask(client, int(amount), stop.exists, begun.touch)
    Path(f"{report}.new").write_text(json.dumps(found))
    Path(f"{report}.new").rename(report)
    return 1 if found["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
