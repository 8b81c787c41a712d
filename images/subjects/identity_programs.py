"""What programs really do with the identity of files: databases, a log, followers of a log, other processes."""

from __future__ import annotations

import contextlib
import logging
import logging.handlers
import os
import sqlite3
import subprocess
import sys
import time

from identity_calls import Finding, Identity

SETTLED_S = 0.4  # a follower that polls every 50 ms has noticed by then what it will notice
PATIENCE_S = 5
TAILS = {
    "tail -F, polling": ["---disable-inotify", "--sleep-interval=0.05", "--max-unchanged-stats=1"],
    "tail -F, inotify": [],
}
COUNT = """
import sqlite3, sys
with sqlite3.connect(sys.argv[1]) as database:
    rows = database.execute("SELECT count(*) FROM facts").fetchone()[0]
    print(rows, "rows, integrity_check", database.execute("PRAGMA integrity_check").fetchone()[0])
"""


class Database:
    """A connection that stays open, and how many rows were committed through it."""

    def __init__(self, path: str, journal: str) -> None:
        self.path = path
        self.committed = 0
        self._error = ""
        self._connection = sqlite3.connect(path, isolation_level=None)
        self._connection.execute(f"PRAGMA journal_mode={journal}")
        self._connection.execute("CREATE TABLE facts (number INTEGER PRIMARY KEY, text TEXT)")

    def write(self, rows: int) -> None:
        """Commit so many rows, each on its own; what fails is told by finding()."""
        try:
            for _ in range(rows):
                self._connection.execute("INSERT INTO facts (text) VALUES (?)", (os.urandom(32).hex(),))
                self.committed += 1
        except sqlite3.Error as error:
            self._error = str(error)

    def open_and_close_another(self) -> None:
        """A second connection of this process: sqlite shares the locks of both by device and inode."""
        with contextlib.closing(sqlite3.connect(self.path)) as second:
            second.execute("SELECT count(*) FROM facts").fetchone()

    def finding(self, name: str) -> Finding:
        """What was committed, as another process finds it."""
        asked = [sys.executable, "-I", "-S", "-c", COUNT, self.path]
        done = subprocess.run(asked, check=False, capture_output=True, text=True)
        now = done.stdout.strip() or done.stderr.strip().rpartition("\n")[2]
        if self._error:
            now = f"{self._error} ({now})"
        return Finding(name, os.path.basename(self.path), f"{self.committed} rows, integrity_check ok", now)


class Log:
    """Python's handler that reopens its file when another one is found under its name."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._opened = 0
        self._expected = 1
        self._lines = 0
        opened = self

        class Counting(logging.handlers.WatchedFileHandler):
            def _open(self) -> object:
                opened._opened += 1
                return super()._open()

        self._handler = Counting(path)

    def write(self) -> None:
        self._lines += 1
        text = f"line {self._lines}"
        self._handler.handle(logging.LogRecord("subject", logging.INFO, "", 0, text, None, None))

    def finding(self) -> Finding:
        self.write()
        now = f"opened {self._opened} time(s)"
        return Finding("watched log", os.path.basename(self._path), f"opened {self._expected} time(s)", now)

    def rotate(self) -> Finding:
        """Rename it as logrotate does: this time it must be opened anew."""
        os.rename(self._path, f"{self._path}.{self._expected}")
        self._expected += 1
        self.write()
        now = "a new file" if os.path.exists(self._path) else "the old file still"
        return Finding("rotation", os.path.basename(self._path), "a new file", now)


class Followers:
    """`tail -F` of one file: one that polls, one that is told by inotify."""

    def __init__(self, path: str, folder: str) -> None:
        self._path = path
        self._written: list[str] = []
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self._tails: dict[str, tuple[subprocess.Popen[bytes], str]] = {}
        for number, (name, options) in enumerate(TAILS.items()):
            out = os.path.join(folder, f"tail-{number}")
            with open(out, "ab") as file:
                command = ["tail", *options, "-n", "+1", "-F", path]
                process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file)
            self._tails[name] = process, out
        self._write()
        for _, out in self._tails.values():
            self._await_newest(out)

    def findings(self) -> list[Finding]:
        """Append a line; each follower must have printed every line once."""
        self._write()
        for process, out in self._tails.values():
            if process.poll() is None:
                self._await_newest(out)
        time.sleep(SETTLED_S)
        return [self._finding(name, *tail) for name, tail in self._tails.items()]

    def _finding(self, name: str, process: subprocess.Popen[bytes], out: str) -> Finding:
        printed = self._lines(out)
        again = len(printed) - len(set(printed))
        strange = [line for line in dict.fromkeys(printed) if line not in self._written]
        missing = len(set(self._written) - set(printed))
        now = [f"{len(self._written) - missing} lines"]
        now += [f"{again} printed again"] if again else []
        now += strange
        now += [f"ended with {process.returncode}"] if process.poll() is not None else []
        return Finding(name, os.path.basename(self._path), f"{len(self._written)} lines", ", ".join(now))

    def _write(self) -> None:
        self._written.append(f"line {len(self._written) + 1}")
        os.write(self._file, self._written[-1].encode() + b"\n")

    def _await_newest(self, out: str) -> None:
        end = time.monotonic() + PATIENCE_S
        while self._written[-1] not in self._lines(out) and time.monotonic() < end:
            time.sleep(0.01)

    def _lines(self, out: str) -> list[str]:
        with open(out, encoding="utf-8") as file:
            return file.read().splitlines()


class Stats:
    """A process of stats.c that asks all the time."""

    def __init__(self, name: str, program: str, path: str) -> None:
        self._name = name
        self._path = path
        self._process = subprocess.Popen([program, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        _, _, *numbers = self._ask()
        self._was = Identity(*numbers)

    def execute_anew(self) -> None:
        """Let it become a new program that knows the old numbers."""
        self._order("x")

    def finding(self) -> Finding:
        try:
            _, wrong, *numbers = self._ask()
        except (OSError, ValueError):
            return Finding(self._name, self._path, "it runs", f"it ended with {self._process.wait()}")
        now = str(Identity(*numbers))
        return Finding(
            self._name,
            self._path,
            f"0 wrong answers, {self._was}",
            f"{wrong} wrong answers, {now}" if wrong else f"0 wrong answers, {self._was}",
        )

    def _ask(self) -> list[int]:
        self._order("c")
        assert self._process.stdout is not None
        return [int(word) for word in self._process.stdout.readline().split()]

    def _order(self, order: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(order.encode())
        self._process.stdin.flush()
