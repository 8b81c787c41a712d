"""A job that counts every millisecond, checks its memory as it goes, and writes down each count.

Rule: its log lies in a folder that all hosts share, so that it alone says whether it ever ran twice or lost a count.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from harness.waiting import await_condition

PAGES = 1024
PROGRAM = """
import mmap, os, sys, time
log, pages = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644), int(sys.argv[2])
memory = mmap.mmap(-1, pages * 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
def content(page, count):
    return b"page %8d was written at count %16d|" % (page, count) * 78
for page in range(pages):
    memory[page * 4096 : page * 4096 + 4056] = content(page, 0)[:4056]
count = 0
while True:
    count += 1
    page = count % pages
    at = page * 4096
    if memory[at : at + 4056] != content(page, max(0, count - pages))[:4056]:
        os.write(log, b"wrong %d\\n" % page)
    memory[at : at + 4056] = content(page, count)[:4056]
    os.write(log, b"%d %d %d\\n" % (count, time.monotonic_ns(), time.time_ns()))
    time.sleep(0.001)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """One line of the log: the clocks as the job read them."""

    number: int
    monotonic_ns: int
    realtime_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Counter:
    """The job, and what it said so far."""

    job: str
    log: Path

    @property
    def command(self) -> tuple[str, ...]:
        """How it is started; its words tell it from every other process."""
        return (sys.executable, "-I", "-S", str(self.log.with_suffix(".py")), str(self.log), str(PAGES))

    def write_program(self) -> None:
        self.log.with_suffix(".py").write_text(PROGRAM)

    def counts(self) -> list[Count]:
        """All complete lines.

        Raises:
            AssertionError: it found its memory wrong.
        """
        return list(self._lines())

    def last(self) -> int:
        """How far it has counted."""
        return max((count.number for count in self.counts()), default=0)

    def await_more(self, more: int = 50, *, timeout_s: float = 60) -> int:
        """Wait until it has counted on by so many; returns how far it is."""
        wanted = self.last() + more
        await_condition(
            lambda: self.last() >= wanted,
            lambda: f"{self.job} to count to {wanted}; it is at {self.last()}",
            timeout_s=timeout_s,
        )
        return self.last()

    def check(self) -> list[Count]:
        """It counted from one on, each number once and in order, and its clock never went back; returns all counts.

        Raises:
            AssertionError: it did not, or found its memory wrong: then it ran twice, or lost something.
        """
        counts = self.counts()
        assert counts, f"{self.job} never counted"
        assert counts[0].number == 1, f"{self.job} began at {counts[0].number}"
        for before, after in itertools.pairwise(counts):
            assert after.number == before.number + 1, (
                f"{self.job} counted {after.number} after {before.number}"
            )
            assert after.monotonic_ns >= before.monotonic_ns, (
                f"CLOCK_MONOTONIC of {self.job} went back from {before.monotonic_ns} to {after.monotonic_ns}"
            )
        return counts

    def longest_pause_ms(self) -> float:
        """The longest time between two counts, by the wall clock, which all hosts share."""
        return (
            max(after.realtime_ns - before.realtime_ns for before, after in itertools.pairwise(self.counts()))
            / 1e6
        )

    def _lines(self) -> Iterator[Count]:
        content = self.log.read_bytes() if self.log.exists() else b""
        for line in content[: content.rfind(b"\n") + 1].decode().splitlines():
            words = line.split()
            assert words[0] != "wrong", f"{self.job} found page {words[1]} of its memory wrong"
            number, monotonic_ns, realtime_ns = map(int, words)
            yield Count(number=number, monotonic_ns=monotonic_ns, realtime_ns=realtime_ns)
