"""Workloads that write down every moment in which they ran, and what a ckpt that died has left of itself."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.cgroups import unified_mount
from harness.command import Ckpt
from harness.pauses import Pauses
from harness.processes import describe, marked
from harness.subjects import FOLDER, PYTHON, Ballast, Program
from harness.traces import Traces
from harness.waiting import await_condition

from ckpt.host import cgroups
from ckpt.host.criu.netlock import list_tables
from ckpt.host.gathering import is_transient

GAP_NS = 100_000_000
"""A program that ticks every few milliseconds stood still if it was silent for so long."""


class Counting(Ballast):
    """images/subjects/ballast.py, small, with a tick every few milliseconds."""

    size_mib = 4

    def command(self) -> list[str]:
        options = ["--log", str(self.log.path), "--tick-ms", "2"]
        return [PYTHON, str(FOLDER / "ballast.py"), str(self.size_mib), *options]


class BigCounting(Counting):
    """The same with so much memory that a dump of it can be hit anywhere."""

    size_mib = 200


@dataclass(slots=True)
class Subject:
    """What is dumped: how ckpt is told, the programs that it is, and those beside it that must not notice."""

    target: tuple[str, ...]
    programs: list[Program]
    neighbours: list[Program] = field(default_factory=list)

    @property
    def everybody(self) -> list[Program]:
        return self.programs + self.neighbours

    def assert_runs(self) -> None:
        """Every program goes on, and has left no number out."""
        for program in self.everybody:
            program.await_progress(5)
            program.check()

    def ran_again_ms(self, died_ns: int, pauses: Pauses) -> float:
        """How long after this instant (CLOCK_REALTIME) the last program went on for good, the machine's own pauses
        aside.
        """
        went_on_ns = max(_went_on_at(program, died_ns) for program in self.everybody)
        died = time.monotonic() - (time.time_ns() - died_ns) / 1e9
        return (went_on_ns - died_ns) / 1e6 - pauses.since(died) * 1e3


@dataclass(frozen=True, slots=True, kw_only=True)
class Crash:
    """How a ckpt ended, and when (CLOCK_REALTIME)."""

    pid: int
    status: int
    when_ns: int
    out: str
    err: str


@dataclass(slots=True)
class Scene:
    """One test's ckpt, and what there was before it was hurt."""

    ckpt: Ckpt
    traces: Traces
    _processes: set[int] = field(default_factory=set)
    _tables: set[str] = field(default_factory=set)

    def remember(self, *, alive: Iterable[int] | None = None) -> None:
        """This is how it must be again; `alive`: with these processes only."""
        self._processes = set(marked(self.traces.mark) if alive is None else alive)
        self._tables = set(list_tables())

    def crash(self, *arguments: object, **environ: str) -> Crash:
        """Run ckpt to its end, however that is."""
        return self.await_end(self.ckpt.start(*arguments, **environ))

    def await_end(self, process: Any) -> Crash:
        """Wait for the end of a ckpt that was started."""
        status = process.wait()
        when_ns = time.time_ns()
        folder = self.traces.folder
        out, err = ((folder / name).read_text(errors="replace") for name in ("ckpt.out", "ckpt.err"))
        return Crash(pid=process.pid, status=status, when_ns=when_ns, out=out, err=err)

    def entry(self) -> dict[str, Any]:
        """The journal entry of the only operation; empty if there is none."""
        for path in (self.ckpt.state / "operations").glob("[0-9a-f]*/entry.json"):
            with suppress(FileNotFoundError):  # it was undone meanwhile
                document: dict[str, Any] = json.loads(path.read_bytes())
                return document
        return {}

    def guardian(self) -> int:
        """The guardian's pid."""
        found = [pid for pid in marked(self.traces.mark) if _name_of(pid) == "ckpt-guardian"]
        assert len(found) == 1, f"guardians: {found}"
        return found[0]

    def await_nothing_left(self, *, alive: Iterable[int] | None = None) -> None:
        """Wait until nothing is left of what ckpt began; `alive`: all that is left of what remember() saw."""
        wanted = self._processes if alive is None else set(alive)
        await_condition(lambda: not self._left(wanted), lambda: f"this: {self._left(wanted)}")

    def await_settled(self) -> None:
        """Wait until no guardian is at work any more."""
        await_condition(
            lambda: "ckpt-guardian" not in map(_name_of, marked(self.traces.mark)), "the guardian to go"
        )

    def jobs(self, state: str = "") -> list[str]:
        """The jobs' names, those in this state or all; every directory of a job must belong to one."""
        jobs = self.ckpt("ps")["jobs"]
        known = [job["name"] for job in jobs]
        assert sorted(path.name for path in _inside(self.ckpt.state / "jobs")) == known
        return [job["name"] for job in jobs if state in {"", job["state"]}]

    @contextmanager
    def stopped_at(self, phase: str, *arguments: object) -> Iterator[subprocess.Popen[bytes]]:
        """A ckpt that stands still at this phase, and goes on afterwards."""
        process = self.ckpt.start(*arguments, CKPT_FAILPOINT=f"{phase}:SIGSTOP")
        with self.going_on(process, phase):
            yield process

    @contextmanager
    def going_on(self, process: subprocess.Popen[bytes], phase: str) -> Iterator[None]:
        """Wait until it stands still at this phase; it goes on afterwards."""
        await_condition(lambda: _is_stopped(process), f"ckpt to stop at {phase}")
        try:
            yield
        finally:
            process.send_signal(signal.SIGCONT)

    def await_zombie(self, pid: int) -> None:
        """Wait until the process has ended, whether its parent has noticed or not."""
        await_condition(lambda: pid not in marked(self.traces.mark), f"the end of {pid}")

    def die_without_guardian(self, phase: str, *arguments: object) -> None:
        """Run ckpt, and have its guardian killed first, and then itself, at this phase."""
        process = self.ckpt.start(*arguments, CKPT_FAILPOINT=f"{phase}:SIGSTOP")
        await_condition(lambda: _is_stopped(process), f"ckpt to stop at {phase}")
        os.kill(self.guardian(), signal.SIGKILL)
        process.kill()
        self.await_end(process)

    def tables_left(self) -> set[str]:
        """CRIU's nftables tables that are new."""
        return set(list_tables()) - self._tables

    def assert_recovered(self) -> None:
        """`ckpt recover` finds nothing to do on this host; the store it may sweep, and says so."""
        document = self.ckpt("recover")
        assert document["problems"] == []
        assert [each for each in document["actions"] if each["subject"] != str(self.ckpt.store)] == []

    def _left(self, wanted: set[int]) -> list[str]:
        state = self.ckpt.state
        found = [f"{path} is there" for name in ("operations", "locks") for path in _inside(state / name)]
        processes = set(marked(self.traces.mark))
        found += [f"{describe([pid])} runs" for pid in processes - wanted]
        found += [f"process {pid} has ended" for pid in wanted - processes]
        found += [f"nft table {name} is there" for name in self.tables_left()]
        found += [f"cgroup {path} is there" for path in self._transient_cgroups()]
        return found

    def _transient_cgroups(self) -> list[str]:
        """The cgroups that ckpt gathered this test's processes in."""
        mount = str(unified_mount())
        return [
            each for each in cgroups.with_all_below(mount) if is_transient(each) and self.traces.mark in each
        ]


def _inside(directory: Path) -> list[Path]:
    return list(directory.iterdir()) if directory.is_dir() else []


def _is_stopped(process: subprocess.Popen[bytes]) -> bool:
    assert process.poll() is None
    return Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def _name_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def _went_on_at(program: Program, since_ns: int) -> int:
    """The first tick after this instant, and after the last time that the program stood still."""
    ticks = [tick["realtime_ns"] for tick in program.log.ticks()]
    first = next(tick for tick in ticks if tick > since_ns)
    stood = [
        after for before, after in itertools.pairwise(ticks) if before > since_ns and after - before > GAP_NS
    ]
    return max([first, *stood])
