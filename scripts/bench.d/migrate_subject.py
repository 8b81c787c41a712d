"""The hosts of `scripts/bench migrate`, the program that is moved between them, and what it says of itself."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

from harness.command import Ckpt
from harness.lab import Host
from harness.traces import Traces
from harness.waiting import await_condition
from real.migrating import MigrationBed

HERE = Path(__file__).resolve().parent
STATE_BYTES = 6 << 30
TICKS_READY = 1500
RECORD_BYTES = 16
READY_S = 120
# Pids of the program on either host, high enough that nothing else has them there.
FIRST_PID = 30_000


@dataclass(frozen=True)
class Pauses:
    """What the program itself saw: how long it did not run, and what it wrote before that.

    `down_ms`: the longest pause since the migration began; `earlier_ms`: the longest one before that.
    `down_at`: when the longest one began, in seconds of CLOCK_REALTIME.
    """

    down_ms: float
    earlier_ms: float
    down_at: float


@dataclass(frozen=True)
class Subject:
    """One run of the program."""

    command: tuple[str, ...]
    log: Path

    def await_ticks(self, more: int) -> None:
        wanted = self._size() + more * RECORD_BYTES
        await_condition(lambda: self._size() >= wanted, f"{self.command[0]} to run", timeout_s=READY_S)

    def pauses(self, since: float) -> Pauses:
        """Its pauses since this moment, in seconds of CLOCK_REALTIME.

        Raises:
            AssertionError: it found its memory wrong.
        """
        times = [time for time, _ in self._records() if time > since * 1e9]
        gaps = [(after - before, before) for before, after in pairwise(times)]
        longest_ns, at_ns = max(gaps)
        earlier_ns = max((gap for gap, before in gaps if before < at_ns), default=0)
        return Pauses(down_ms=longest_ns / 1e6, earlier_ms=earlier_ns / 1e6, down_at=at_ns / 1e9)

    def written(self, begin: float, end: float) -> int:
        """How many pages it wrote between these moments, each as often as it wrote it."""
        counts = [count for time, count in self._records() if begin * 1e9 <= time <= end * 1e9]
        return counts[-1] - counts[0] if counts else 0

    def _records(self) -> list[tuple[int, int]]:
        content = self.log.read_bytes()
        numbers = array("Q", content[: len(content) // RECORD_BYTES * RECORD_BYTES])
        records = list(zip(numbers[::2], numbers[1::2], strict=True))
        assert all(time for time, _ in records), "the program found its memory wrong"
        return records

    def _size(self) -> int:
        return self.log.stat().st_size if self.log.exists() else 0


class Hosts:
    """The two hosts, and a folder for the images on each."""

    def __init__(self, traces: Traces, ckpt: Ckpt, *, disk: bool) -> None:
        self.traces = traces
        self.ckpt = ckpt
        self.bed = MigrationBed(traces, ckpt, state_bytes=0 if disk else STATE_BYTES)
        self._disk = disk
        self._count = 0
        self._pids: list[int] = []
        self._program = traces.folder / "dirtying"
        source = str(HERE / "dirtying.c")
        subprocess.run(["gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-o", self._program, source], check=True)

    @property
    def both(self) -> tuple[Host, Host]:
        return self.bed.hosts

    def images(self, host: Host) -> Path:
        """Where CRIU's images go on this host."""
        return self.traces.folder / f"images-{host.name}" if self._disk else Path("/tmp/images")

    def new_subject(self, size_mib: int, percent: float) -> Subject:
        """The program, not started yet."""
        self._count += 1
        log = self.traces.folder / f"ticks-{self._count}"
        return Subject(command=(str(self._program), str(size_mib), str(percent), str(log)), log=log)

    def start(self, subject: Subject) -> int:
        """Start it on the source as a process of its own; returns its pid there."""
        last = FIRST_PID + 10 * self._count
        begin = (
            f'echo {last} >/proc/sys/kernel/ns_last_pid && (setsid "$@" </dev/null >/dev/null 2>&1 & echo $!)'
        )
        pid = int(self.bed.source.must_run("sh", "-c", begin, "begin", *subject.command))
        self._pids.append(pid)
        subject.await_ticks(TICKS_READY)
        return pid

    def clean(self) -> None:
        """End what runs, remove the images."""
        for host in self.both:
            # A process keeps its pid when it moves, and no other has one of these.
            for pid in self._pids:
                host.run("kill", "-KILL", str(pid))
            host.must_run("rm", "-rf", self.images(host))
        self._pids.clear()

    def wire_bytes(self) -> int:
        """What went from the source to the target so far."""
        path = "/sys/class/net/out/statistics/tx_bytes"
        return int(self.bed.source.must_run("cat", path))


@contextmanager
def two_hosts(directory: str, *, disk: bool) -> Iterator[Hosts]:
    """The hosts, with all that they hold in a new folder; everything is gone afterwards."""
    place = Path(tempfile.mkdtemp(dir=directory, prefix="ckpt-bench-"))
    traces = Traces(place)
    ckpt = Ckpt(traces)
    try:
        yield Hosts(traces, ckpt, disk=disk)
    finally:
        ckpt.close()
        traces.remove()
        shutil.rmtree(place)
