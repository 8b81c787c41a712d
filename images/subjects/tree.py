"""A tree of python processes that holds one of everything, and checks all of it at every tick.

A parent and two children talk over pipes in numbered messages; the parent fills named shared memory, and the
children answer with what they found in it; every tick is a row in a sqlite database and a record in an open
data file, both read again; two threads, a repeating and a sleeping timer and an interval timer run beside.

Usage: tree.py --log FILE --dir FOLDER [--tick-ms 50] [--ticks N] [--exit-code N] [--alarm-s S] [--shm NAME]

SIGTERM ends it cleanly, with the exit code that was asked for. So does the last of --ticks.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import sqlite3
import struct
import sys
import threading
import time
import zlib
from multiprocessing import shared_memory
from typing import NoReturn

from report import Report

CHILDREN = 2
MESSAGE = struct.Struct(">QQI")  # sequence number, crc of the shared memory, crc of the two
SHM_BYTES = 64 << 10
SLOTS_BYTES = 64  # at the end: one number for each child, written by the child alone
RECORD = "{:012d} {:08x}\n"
RECORD_BYTES = len(RECORD.format(0, 0))
THOROUGH_EVERY = 20  # ticks


class WrongError(Exception):
    """Something is not as it must be."""


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(usage=(__doc__ or "").partition("Usage: ")[2].partition("\n")[0])
    parser.add_argument("--log", required=True)
    parser.add_argument("--dir", required=True)
    parser.add_argument("--tick-ms", type=float, default=50)
    parser.add_argument("--ticks", type=int, default=sys.maxsize)
    parser.add_argument("--exit-code", type=int, default=0)
    parser.add_argument("--alarm-s", type=float, default=3600)
    parser.add_argument("--shm")
    options = parser.parse_args(arguments)
    report = Report(options.log)
    memory = shared_memory.SharedMemory(name=options.shm, create=True, size=SHM_BYTES)
    # The children come first: a process with threads should not fork.
    children = [Child(number, memory) for number in range(CHILDREN)]
    tree = Parent(options.dir, memory, children, options.alarm_s)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    number = 0
    try:
        while number < options.ticks and not stop.is_set():
            number += 1
            facts = tree.tick(number)
            report.tick(number, **facts)
            time.sleep(options.tick_ms / 1000)
    except (WrongError, OSError, sqlite3.Error) as error:
        report.error(number, f"{type(error).__name__}: {error}")
        os._exit(99)
    tree.close()
    return options.exit_code


class Parent:
    """Does and checks everything, once a tick."""

    def __init__(
        self, folder: str, memory: shared_memory.SharedMemory, children: list[Child], alarm_s: float
    ) -> None:
        self._memory = memory
        self._children = children
        self._database = Database(os.path.join(folder, "ticks.db"))
        self._data = DataFile(os.path.join(folder, "data.txt"))
        self._beats = Beats()
        self._alarm = Alarm(alarm_s)

    def tick(self, number: int) -> dict[str, object]:
        """Do and check everything; returns what to tell."""
        crc = fill(self._memory, number)
        for child in self._children:
            child.send(number, crc)
        for child in self._children:
            child.check_answer(number, crc)
        self._database.add(number, crc)
        self._data.add(number)
        if number % THOROUGH_EVERY == 0:
            self._database.check(number)
            self._data.check(number)
            self._beats.check()
        return {
            "children": [child.pid for child in self._children],
            "threads": threading.active_count(),
            "rows": number,
            **self._beats.counts(),
            **self._alarm.state(),
        }

    def close(self) -> None:
        """End all that runs beside and remove what is not a file of the folder."""
        self._beats.close()
        self._alarm.close()
        for child in self._children:
            child.hang_up()
        # Only now: a child inherited the pipes of those before it.
        for child in self._children:
            os.waitpid(child.pid, 0)
        self._database.close()
        self._memory.close()
        self._memory.unlink()


class Child:
    """A forked process at the other end of two pipes."""

    def __init__(self, number: int, memory: shared_memory.SharedMemory) -> None:
        from_parent, self._down = os.pipe()
        self._up, to_parent = os.pipe()
        self._number = number
        self._memory = memory
        self.pid = os.fork()
        if self.pid == 0:
            # It ends when its parent closes the pipe, also where SIGTERM goes to the whole group.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            os.close(self._down)
            os.close(self._up)
            answer_for_ever(number, memory, from_parent, to_parent)
        os.close(from_parent)
        os.close(to_parent)

    def send(self, number: int, crc: int) -> None:
        write_message(self._down, number, crc)

    def check_answer(self, number: int, crc: int) -> None:
        """The child must answer with this number, and with the checksum of the memory that both see."""
        answer = read_message(self._up)
        if answer is None:
            raise WrongError(f"child {self._number} closed its pipe")
        if answer != (number, crc):
            raise WrongError(f"child {self._number} answered {answer}, not {(number, crc)}")
        (slot,) = struct.unpack_from(">Q", self._memory.buf, slot_at(self._number))
        if slot != number:
            raise WrongError(f"child {self._number} left {slot} in shared memory, not {number}")

    def hang_up(self) -> None:
        os.close(self._down)
        os.close(self._up)


def answer_for_ever(
    number: int, memory: shared_memory.SharedMemory, incoming: int, outgoing: int
) -> NoReturn:
    """Be the child: check each number against the one before, and the shared memory against its checksum."""
    last = 0
    # A gap or a repetition ends the child, and its parent sees the pipe close.
    while (message := read_message(incoming)) is not None and message[0] == last + 1:
        last = message[0]
        struct.pack_into(">Q", memory.buf, slot_at(number), last)
        write_message(outgoing, last, checksum(memory))
    os._exit(0 if message is None else 1)


def fill(memory: shared_memory.SharedMemory, number: int) -> int:
    """New content for the shared memory; returns its checksum."""
    memory.buf[: SHM_BYTES - SLOTS_BYTES] = random.Random(number).randbytes(SHM_BYTES - SLOTS_BYTES)
    return checksum(memory)


def checksum(memory: shared_memory.SharedMemory) -> int:
    return zlib.crc32(memory.buf[: SHM_BYTES - SLOTS_BYTES])


def slot_at(number: int) -> int:
    return SHM_BYTES - SLOTS_BYTES + 8 * number


def write_message(fd: int, number: int, crc: int) -> None:
    # Shorter than PIPE_BUF: one write is all of it or an error.
    os.write(fd, MESSAGE.pack(number, crc, zlib.crc32(b"%d %d" % (number, crc))))


def read_message(fd: int) -> tuple[int, int] | None:
    """The next message; None at the end of the pipe."""
    raw = b""
    while len(raw) < MESSAGE.size:
        piece = os.read(fd, MESSAGE.size - len(raw))
        if not piece:
            return None
        raw += piece
    number, crc, check = MESSAGE.unpack(raw)
    if check != zlib.crc32(b"%d %d" % (number, crc)):
        raise WrongError(f"a damaged message came out of a pipe: {raw.hex()}")
    return number, crc


class Database:
    """One row a tick, in WAL mode: two mapped files, and locks that are held all the time."""

    def __init__(self, path: str) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None)
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute("PRAGMA synchronous=NORMAL")
        self._connection.execute("CREATE TABLE ticks (number INTEGER PRIMARY KEY, crc INTEGER)")

    def add(self, number: int, crc: int) -> None:
        self._connection.execute("INSERT INTO ticks VALUES (?, ?)", (number, crc))
        count, last = self._connection.execute("SELECT count(*), max(number) FROM ticks").fetchone()
        if (count, last) != (number, number):
            raise WrongError(f"the database has {count} rows up to {last}, not {number}")

    def check(self, number: int) -> None:
        """The whole of it, also through a second connection."""
        (verdict,) = self._connection.execute("PRAGMA quick_check").fetchone()
        if verdict != "ok":
            raise WrongError(f"quick_check says: {verdict}")
        path = self._connection.execute("PRAGMA database_list").fetchone()[2]
        with contextlib.closing(sqlite3.connect(path)) as second:
            (count,) = second.execute("SELECT count(*) FROM ticks").fetchone()
        if count != number:
            raise WrongError(f"a second connection sees {count} rows, not {number}")

    def close(self) -> None:
        self._connection.close()


class DataFile:
    """A file that stays open, grows by one record a tick and is read again."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)

    def add(self, number: int) -> None:
        record = self._record(number)
        os.write(self._fd, record)
        if os.pread(self._fd, 2 * RECORD_BYTES, (number - 1) * RECORD_BYTES) != record:
            raise WrongError(f"the data file does not end with record {number}")

    def check(self, number: int) -> None:
        """Every record, from the first."""
        content = os.pread(self._fd, (number + 1) * RECORD_BYTES, 0)
        if content != b"".join(map(self._record, range(1, number + 1))):
            raise WrongError(f"the data file is not records 1 to {number}: {len(content)} bytes")

    @staticmethod
    def _record(number: int) -> bytes:
        return RECORD.format(number, zlib.crc32(b"%d" % number)).encode()


class Beats:
    """What runs beside: a thread that waits for moments, a timer that sets itself again, SIGALRM."""

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._counts = {"beats": 0, "timers": 0, "alarms": 0}
        self._checked = dict(self._counts)
        self._thread = threading.Thread(target=self._beat, name="beats")
        self._thread.start()
        self._timer = self._set_timer()
        signal.signal(signal.SIGALRM, lambda *_: self._count("alarms"))
        signal.setitimer(signal.ITIMER_REAL, 0.1, 0.1)

    def counts(self) -> dict[str, int]:
        return dict(self._counts)

    def check(self) -> None:
        """All of them went on since the last time."""
        now = self.counts()
        for name, count in now.items():
            if count <= self._checked[name]:
                raise WrongError(f"{name} stopped at {count}")
        self._checked = now

    def close(self) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        self._stop.set()
        self._timer.cancel()
        self._thread.join()

    def _beat(self) -> None:
        while not self._stop.wait(0.01):
            self._count("beats")

    def _set_timer(self) -> threading.Timer:
        timer = threading.Timer(0.15, self._timer_fired)
        timer.daemon = True
        timer.start()
        return timer

    def _timer_fired(self) -> None:
        self._count("timers")
        if not self._stop.is_set():
            self._timer = self._set_timer()

    def _count(self, name: str) -> None:
        self._counts[name] += 1


class Alarm:
    """One timer that sleeps until a moment of CLOCK_MONOTONIC."""

    def __init__(self, after_s: float) -> None:
        self._due = time.monotonic() + after_s
        self._fired: float | None = None
        self._timer = threading.Timer(after_s, self._fire)
        self._timer.daemon = True
        self._timer.start()

    def state(self) -> dict[str, object]:
        """How long the timer will sleep, or how late it was."""
        if self._fired is None:
            return {"alarm_left_ms": round((self._due - time.monotonic()) * 1000, 1)}
        return {"alarm_late_ms": round((self._fired - self._due) * 1000, 1)}

    def close(self) -> None:
        self._timer.cancel()

    def _fire(self) -> None:
        self._fired = time.monotonic()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
