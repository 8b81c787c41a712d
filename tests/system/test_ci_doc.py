"""docs/ci.md: each example is cut off as its CI does it, and goes on from nothing but the directory it carries over."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from harness.ci_examples import Example, examples
from harness.command import PROGRAM, Ckpt
from harness.traces import Traces
from harness.waiting import await_condition

# What `make test` does: it sums up in memory, and notes in a file how far it is.
_TEST = """
import time
total = 0
with open("build/notes", "w", buffering=1) as notes:
    for number in range(150):
        total += number
        print(number, file=notes)
        time.sleep(0.02)
with open("build/result", "w") as result:
    print(total, file=result)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """How a CI runs a shell part, what it calls the commit, and how it ends what is cancelled."""

    command: tuple[str, ...]
    commit: str
    cache: str
    cancel: Callable[[subprocess.Popen[bytes]], None]


def _interrupt_shell(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGINT)


def _end_group(process: subprocess.Popen[bytes]) -> None:
    os.killpg(process.pid, signal.SIGTERM)


def _end_shell(process: subprocess.Popen[bytes]) -> None:
    process.terminate()


WAYS = {
    "GitHub Actions": Way(
        command=("bash", "-e"), commit="GITHUB_SHA", cache="/var/tmp/ckpt-ci", cancel=_interrupt_shell
    ),
    "GitLab CI": Way(
        command=("bash", "-eo", "pipefail"),
        commit="CI_COMMIT_SHA",
        cache="$CI_PROJECT_DIR/.ckpt",
        cancel=_end_group,
    ),
    "Jenkins": Way(command=("sh", "-xe"), commit="GIT_COMMIT", cache="/srv/ckpt-ci", cancel=_end_shell),
}


class Runner:
    """A machine that CI takes for one run, and wipes before the next; one directory is carried over."""

    def __init__(self, traces: Traces, ckpt: Ckpt, way: Way, script: str) -> None:
        self._folder = traces.folder
        self._way = way
        self.workspace = traces.folder / "workspace"
        self._cache = (
            self.workspace / ".ckpt" if "CI_PROJECT_DIR" in way.cache else traces.folder / "carried-over"
        )
        assert way.cache in script
        self._script = traces.folder / "script.sh"
        self._script.write_text(script.replace(way.cache, str(self._cache)))
        self._environ = ckpt.environ(
            {
                way.commit: traces.mark,
                "PATH": f"{PROGRAM.parent}:{os.environ['PATH']}",
                "PYTHON": sys.executable,
            }
        )
        # They are what the script sets.
        del self._environ["CKPT_STORE"]
        self._state = ckpt.state

    def start(self) -> subprocess.Popen[bytes]:
        """Check out, and run the shell part."""
        self.workspace.mkdir(exist_ok=True)
        (self.workspace / "test.py").write_text(_TEST)
        (self.workspace / "Makefile").write_text("test:\n\t$(PYTHON) test.py\n")
        with open(self._folder / "output", "ab") as output:
            return subprocess.Popen(
                [*self._way.command, str(self._script)],
                cwd=self.workspace,
                env=self._environ,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def wipe(self) -> None:
        """Pack what is carried over, remove everything, unpack it for the next run."""
        packed = self._folder / "cache.tar"
        subprocess.run(["tar", "-cf", packed, "-C", self._cache, "."], check=True)
        for place in (self.workspace, self._cache, self._state):
            shutil.rmtree(place, ignore_errors=True)
        self._cache.mkdir(parents=True)
        subprocess.run(["tar", "-xf", packed, "-C", self._cache], check=True)

    def output(self) -> str:
        """What all runs printed."""
        return (self._folder / "output").read_text(errors="replace")

    def has_checkpoint(self) -> bool:
        """Whether any is in the directory that is carried over."""
        return any(each.is_file() for each in (self._cache / "store/manifests").rglob("*"))


def test_every_example_has_a_way_to_be_run() -> None:
    assert [example.name for example in examples()] == list(WAYS)


@pytest.mark.parametrize("example", examples(), ids=lambda example: example.name)
def test_an_example_that_is_cut_off_goes_on_in_the_next_run(
    example: Example, traces: Traces, ckpt: Ckpt
) -> None:
    runner = Runner(traces, ckpt, WAYS[example.name], example.script)
    notes = runner.workspace / "build/notes"
    process = runner.start()
    try:
        await_condition(
            lambda: notes.exists() and notes.read_text().count("\n") > 20, lambda: f"work\n{runner.output()}"
        )
        WAYS[example.name].cancel(process)
        assert process.wait(timeout=60) == 75, runner.output()
        assert runner.has_checkpoint()
        noted = len(notes.read_text().splitlines())
        assert noted < 150
        runner.wipe()

        assert runner.start().wait(timeout=60) == 0, runner.output()
    finally:
        process.kill()
        process.wait()
    assert (runner.workspace / "build/result").read_text() == f"{sum(range(150))}\n"
    assert notes.read_text().splitlines() == [str(number) for number in range(150)]
    assert not runner.has_checkpoint()
