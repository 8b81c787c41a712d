"""Long jobs under `ckpt run`, whose every process is killed at once, at moments that a seed chooses.

Rules:
- A job is killed with everything that belongs to it: what descends from the command that was started, what bears the
  test's mark, and what is in a cgroup of the test's. All of it is stopped first, so that nothing escapes or
  tells on what happened to another; then it is killed, by its pid.
- A moment is waited for in what the journal and the store say, and never longer than the job lives.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from harness.command import Ckpt
from harness.long_jobs import LongJob
from harness.processes import cgroup_of, descendants, is_dead, kill, start_ticks
from harness.traces import Traces
from harness.waiting import await_condition

from ckpt.host.jobs import JobRegistry
from ckpt.units import JobName

PATIENCE_S = 60


class When(StrEnum):
    """When all is killed, give or take a moment that the seed chooses."""

    STARTING = "just started"
    RESTORING = "while one is restored"
    RESTORED = "just restored"
    DUMPING = "while one is dumped"
    STORING = "while one's checkpoint is stored"
    RUNNING = "between checkpoints"


_AT_MOST_S = {
    When.STARTING: 1.5,
    When.RESTORING: 0.8,
    When.RESTORED: 0.3,
    When.DUMPING: 0.4,
    When.STORING: 0.3,
    When.RUNNING: 1.5,
}
"""The longest time from when it has come until the kill, in seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """When the job of this number is seen at this, and so much later."""

    when: When
    job: int
    after_s: float


def moments(seed: int, jobs: int) -> list[Moment]:
    """Twenty of all kinds; the first ones come before there is any checkpoint, and while the first one is taken."""
    chosen = random.Random(seed)
    kinds = [When.RESTORING] * 4 + [When.RESTORED] * 3 + [When.STARTING] * 3
    kinds += [When.DUMPING] * 3 + [When.STORING] * 2 + [When.RUNNING] * 3
    chosen.shuffle(kinds)
    return [
        Moment(when=when, job=chosen.randrange(jobs), after_s=chosen.uniform(0, _AT_MOST_S[when]))
        for when in [When.STARTING, When.DUMPING, *kinds]
    ]


class Survivor:
    """One long job, and the command line that is run again and again."""

    def __init__(self, ckpt: Ckpt, traces: Traces, work: LongJob) -> None:
        self.name = JobName(ckpt.new_job_name())
        self.work = work
        self.process: subprocess.Popen[bytes] | None = None
        self._ckpt = ckpt
        self._registry = JobRegistry(str(ckpt.state))
        self._seen: dict[str, bool] = {}
        self._known: set[str] = set()
        options = ["--every", "2s", "--max-frozen", "50%", "--resume", "--with-files", work.place]
        self._words = ["run", "--name", self.name, *options, "--", *work.command()]
        self._output = traces.folder / f"{work.name}.told"

    def start(self) -> None:
        """Run the command line; what it tells is in told()."""
        self._known = self._checkpoints()
        with open(self._output, "ab") as output:
            self.process = subprocess.Popen(
                self._ckpt.command_line(*self._words),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=output,
                env=self._ckpt.environ({}),
            )

    def told(self) -> str:
        return self._output.read_text(errors="replace")

    def log(self) -> str:
        return (self._ckpt.state / "jobs" / self.name / "log").read_text()

    def has_ended(self) -> bool:
        assert self.process is not None
        return self.process.poll() is not None

    def has_more(self) -> bool:
        """Whether there is a checkpoint that was not there when the command was started."""
        return bool(self._checkpoints() - self._known)

    def is_at(self, when: When) -> bool:
        """Whether it is there now; RUNNING: whether all of it runs, and nothing is done to it."""
        what, phase = self.under_way()
        match when:
            case When.STARTING:
                return True
            case When.RESTORING:
                return what.startswith("restore") or (not self._seen and self._is_alive())
            case When.RESTORED | When.RUNNING:
                return not what and self._is_alive()
            case When.DUMPING:
                return what.startswith("dump") and phase in {"", "freezing", "frozen", "dumped", "copied"}
            case When.STORING:
                return what.startswith("dump") and phase in {"thawed", "stored", "durable"}

    def under_way(self) -> tuple[str, str]:
        """What ckpt does to it now, and how far it is, by the journal; nothing: two empty words."""
        assert self.process is not None
        for path in (self._ckpt.state / "operations").glob("[0-9a-f]*/entry.json"):
            with suppress(OSError, ValueError, IndexError):
                entry: dict[str, Any] = json.loads(path.read_bytes())
                controller = entry["controller"]
                is_own = entry["what"].endswith(self.name) or controller["pid"] == self.process.pid
                # Those of who was killed stay until somebody undoes them.
                if is_own and start_ticks(controller["pid"]) == controller["start_ticks"]:
                    return entry["what"].removesuffix(f" of job {self.name}"), entry["phase"]
        return "", ""

    def _is_alive(self) -> bool:
        with suppress(Exception):
            return self._registry.look(self.name).is_alive
        return False

    def _checkpoints(self) -> set[str]:
        # Asked hundreds of times: the command would take longer than what is waited for.
        for path in self._ckpt.store.glob("receipts/*"):
            if path.name not in self._seen:
                with suppress(OSError):
                    self._seen[path.name] = self.name.encode() in path.read_bytes()
        return {name for name, own in self._seen.items() if own}


class Slaughter:
    """Several survivors, all of which are killed at once, again and again."""

    def __init__(self, traces: Traces, survivors: list[Survivor]) -> None:
        self.survivors = survivors
        self.hits: list[tuple[str, ...]] = []
        self._traces = traces

    def start(self) -> None:
        for each in self.survivors:
            each.start()

    def await_moment(self, moment: Moment) -> None:
        """Wait until it has come."""
        chosen = self.survivors[moment.job]
        if moment.when in {When.DUMPING, When.STORING, When.RUNNING} and self.hits:
            # So that all get further, however often they are killed.
            self._await(lambda: all(each.has_more() for each in self.survivors), "a checkpoint of each")
        self._await(lambda: chosen.is_at(moment.when), f"{chosen.work.name} {moment.when.value}")
        with suppress(subprocess.TimeoutExpired):
            assert chosen.process is not None
            chosen.process.wait(moment.after_s)

    def kill(self) -> None:
        """Stop all, note where each stands, and kill all."""
        stopped = self._stop_all()
        self.hits.append(tuple(" ".join(each.under_way()).strip() or "runs" for each in self.survivors))
        kill(stopped)
        for each in self.survivors:
            assert each.process is not None
            each.process.wait()
        # PID 1 reaps them in its own time; until then they have their numbers.
        await_condition(lambda: all(map(is_dead, stopped)), "the end of all")

    def _stop_all(self) -> set[int]:
        stopped: set[int] = set()
        while found := self._everything() - stopped:
            for pid in found:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGSTOP)
            stopped |= found
        return stopped

    def _everything(self) -> set[int]:
        found = set(self._traces.processes())
        for each in self.survivors:
            assert each.process is not None
            found.update(descendants(each.process.pid))
        found.update(_in_cgroups(each.name for each in self.survivors))
        return {pid for pid in found if pid != os.getpid() and not is_dead(pid)}

    def _await(self, condition: Any, what: str) -> None:
        def come() -> bool:
            ended = [each for each in self.survivors if each.has_ended()]
            assert not ended, f"{ended[0].work.name} has ended: {ended[0].told()[-2000:]}\n{self.hits}"
            return bool(condition())

        await_condition(
            come,
            lambda: f"{what}: {[(each.under_way(), each.told()[-500:]) for each in self.survivors]}",
            timeout_s=PATIENCE_S,
        )


def _in_cgroups(names: Iterable[str]) -> set[int]:
    """Every process in a version 2 cgroup of such a job's, or below one."""
    wanted = set(names)
    found = set()
    for name in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError, AssertionError, ValueError):
            place: Path = cgroup_of(int(name))
            if wanted & set(place.parts):
                found.add(int(name))
    return found
