"""A job under `ckpt run --every`, as a batch user starts it, and what is asked of it."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import Any

from harness.command import Ckpt
from harness.processes import is_dead, kill
from harness.traces import Traces
from harness.waiting import await_condition

COUNTING = ["/bin/sh", "-c", 'n=0; while [ ! -e "$0" ]; do echo $((n += 1)); sleep 0.02; done; exit "$1"']
"""Counts until there is a file of the name of its first argument, and ends with the code of the second."""


class Supervised:
    """One job, and the command line that is run again and again."""

    def __init__(self, ckpt: Ckpt, traces: Traces, *options: str, code: int = 0) -> None:
        self.ckpt = ckpt
        self.name = ckpt.new_job_name()
        self.end = traces.folder / f"end of {self.name}"
        self.options = ["--name", self.name, "--every", "250ms", "--max-frozen", "50%", *options]
        self.command = ["--", *COUNTING, str(self.end), str(code)]
        self.words = ["run", *self.options, *self.command]
        self.directory = ckpt.state / "jobs" / self.name
        self.log = self.directory / "log"

    def start(self) -> subprocess.Popen[bytes]:
        """Run the command line, and leave it running."""
        return self.ckpt.start(*self.words)

    def run(self) -> subprocess.CompletedProcess[str]:
        """Run the command line to its end."""
        return self.ckpt.run(*self.words)

    def job(self) -> dict[str, Any]:
        """What `ps` says of it."""
        return next(each for each in self.ckpt("ps")["jobs"] if each["name"] == self.name)

    def checkpoints(self) -> list[dict[str, Any]]:
        return list(self.ckpt("list", "--job", self.name)["checkpoints"])

    def ids(self) -> list[str]:
        return [each["id"] for each in self.checkpoints()]

    def dump(self, *options: str) -> str:
        """Have it checkpointed by hand, between two of its supervisor's; gives the id."""

        def taken() -> str:
            done = self.ckpt.run("dump", "-q", self.name, *options)
            assert done.returncode in {0, 61}, done.stderr
            return done.stdout.strip()

        return await_condition(taken, f"a dump of {self.name}")

    def written(self) -> list[int]:
        """The numbers in its log."""
        return [int(line) for line in self.log.read_text().split()] if self.log.exists() else []

    def await_checkpoint(self, more: int = 1) -> None:
        """Wait until there are so many more in the store than now, whatever is removed meanwhile."""
        known = self._stored()
        seen: set[str] = set()

        def came() -> bool:
            seen.update(self._stored() - known)
            return len(seen) >= more

        await_condition(came, lambda: f"{more} checkpoint(s) of {self.name}: {len(seen)}")

    def _stored(self) -> set[str]:
        # Asked thousands of times: the command would take longer than what is waited for.
        return {path.name for path in self.ckpt.store.glob("manifests/*") if path.is_file()}

    def await_more(self, more: int = 10) -> None:
        """Wait until it has counted so much further."""
        wanted = len(self.written()) + more
        await_condition(
            lambda: len(self.written()) >= wanted, lambda: f"{wanted} lines: {self.written()[-3:]}"
        )

    def kill_all(self, supervisor: subprocess.Popen[bytes]) -> None:
        """kill -9 of everything that belongs to it, the shim as well."""
        # The job's own processes last: their shim would say how they ended.
        pids = [*self._shims(), *self.job()["pids"]]
        supervisor.kill()
        supervisor.wait()
        kill(pids)
        await_condition(lambda: all(map(is_dead, pids)), f"the end of {pids}")

    def _shims(self) -> list[int]:
        root = self.job()["pid"]
        status = Path(f"/proc/{root}/status").read_text()
        parent = int(status.split("PPid:")[1].split()[0])
        assert parent not in (0, 1, os.getpid())
        return [parent]

    def ends_well(self, supervisor: subprocess.Popen[bytes]) -> None:
        """It ends with code 0 when it is asked to, having counted every number once."""
        self.end.touch()
        assert supervisor.wait(timeout=60) == 0
        self.has_counted()

    def has_counted(self) -> None:
        """No number was lost or written twice."""
        written = self.written()
        assert written == list(range(1, len(written) + 1))


def term(process: subprocess.Popen[bytes]) -> int:
    """SIGTERM, as a scheduler sends it; gives the exit code."""
    process.send_signal(signal.SIGTERM)
    return process.wait(timeout=60)
