"""The `ckpt` command, as its users call it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.cgroups import Cgroup
from harness.processes import MARK
from harness.traces import Traces

PROGRAM = Path(sys.executable).with_name("ckpt")


class Ckpt:
    """Runs ckpt with a store and a state of the test's own."""

    def __init__(self, traces: Traces) -> None:
        self._traces = traces
        self.store = traces.folder / "store"
        self.state = traces.folder / "state"
        self._started: list[subprocess.Popen[bytes]] = []
        self._jobs = 0

    def new_job_name(self) -> str:
        """A name that no other test uses."""
        self._jobs += 1
        return f"{self._traces.mark}-job{self._jobs}"

    def __call__(
        self, command: str, *arguments: object, exit_code: int = 0, timeout_s: float = 60, **environ: str
    ) -> dict[str, Any]:
        """Run `ckpt COMMAND --json ARGUMENTS…`; returns the JSON document that it printed.

        Raises:
            AssertionError: another exit code, or not one JSON document on stdout.
        """
        done = self.run(command, "--json", *arguments, timeout_s=timeout_s, **environ)
        shown = f"ckpt {command} {' '.join(map(str, arguments))}"
        assert done.returncode == exit_code, (
            f"{shown}\nexit code {done.returncode}, not {exit_code}\n{done.stdout}\n{done.stderr}"
        )
        try:
            document = json.loads(done.stdout)
        except ValueError:
            raise AssertionError(
                f"{shown}\nprinted no JSON document:\n{done.stdout}\n{done.stderr}"
            ) from None
        for entry in [document, *document.get("restored", [])]:
            if cgroup := entry.get("cgroup"):
                self._traces.adopt(Cgroup(Path(cgroup)))
        return document

    def run(
        self, *arguments: object, timeout_s: float = 60, **environ: str
    ) -> subprocess.CompletedProcess[str]:
        """Run `ckpt ARGUMENTS…` to its end, whatever that is."""
        return subprocess.run(
            self.command_line(*arguments),
            check=False,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=timeout_s,
            env=self.environ(environ),
            cwd=self._traces.folder,
        )

    def start(self, *arguments: object, **environ: str) -> subprocess.Popen[bytes]:
        """Start `ckpt ARGUMENTS…` and leave it running; its output goes to ckpt.out and ckpt.err."""
        with (
            open(self._traces.folder / "ckpt.out", "ab") as out,
            open(self._traces.folder / "ckpt.err", "ab") as err,
        ):
            process = subprocess.Popen(
                self.command_line(*arguments),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env=self.environ(environ),
                cwd=self._traces.folder,
            )
        self._started.append(process)
        return process

    def command_line(self, *arguments: object) -> list[str]:
        """The words of `ckpt ARGUMENTS…`, for a test that starts it in its own way."""
        return [str(PROGRAM), *map(str, arguments)]

    def environ(self, more: Mapping[str, str]) -> dict[str, str]:
        """What ckpt is started with."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("CKPT_")}
        tools = {name: os.environ[name] for name in ("CKPT_CRIU", "CKPT_PREFIX") if name in os.environ}
        own = {"CKPT_STORE": str(self.store), "CKPT_STATE": str(self.state), MARK: self._traces.mark}
        return {**kept, **tools, **own, "NO_COLOR": "1", **more}

    def close(self) -> None:
        """End what was started and still runs."""
        for process in self._started:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
            process.wait()
