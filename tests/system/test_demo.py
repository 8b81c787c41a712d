"""The demo tells its story to the end, and leaves nothing, however it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from harness.command import PROGRAM
from harness.processes import MARK
from harness.traces import Traces
from harness.waiting import await_condition

pytestmark = pytest.mark.system

ROOT = Path(__file__).parents[2]


def start_demo(traces: Traces, out: Path | None) -> subprocess.Popen[bytes]:
    """Start the demo, its output to a file or to a pipe, without the set-up: tests change no installation."""
    with open(out or os.devnull, "wb") as file:
        return subprocess.Popen(
            [sys.executable, ROOT / "scripts/lib/demo.py"],
            stdin=subprocess.DEVNULL,
            stdout=file if out else subprocess.PIPE,
            stderr=file,
            env={**os.environ, MARK: traces.mark},
        )


def answer(command: str) -> dict[str, Any]:
    """What ckpt says with the default store and state, which the demo uses."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("CKPT_ST")}
    shown = subprocess.run([PROGRAM, command, "--json"], check=True, capture_output=True, env=environ)
    document: dict[str, Any] = json.loads(shown.stdout)
    return document


def check_nothing_is_left(traces: Traces, said: str) -> None:
    name = next(word for word in said.split() if word.startswith("demo-"))
    assert name not in {job["name"] for job in answer("ps")["jobs"]}
    assert name not in {checkpoint["job"] for checkpoint in answer("list")["checkpoints"]}
    assert not list(Path("/dev/shm").glob(f"{name}*"))
    folder = next(word for word in said.split() if word.startswith("/var/tmp/ckpt-demo-"))
    assert not Path(folder).parent.exists()
    await_condition(lambda: not traces.processes(), lambda: f"no process to be left: {traces.processes()}")


def test_the_demo_ends_well_and_leaves_nothing(traces: Traces, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert start_demo(traces, out).wait(90) == 0, out.read_text()
    said = out.read_text()
    assert "no gap, none twice" in said
    assert "quick_check: ok" in said
    assert "frozen" in said
    check_nothing_is_left(traces, said)


@pytest.mark.parametrize("moment", ["runs: pid", "ckpt dump", "ckpt restore"])
def test_an_interrupted_demo_leaves_nothing(moment: str, traces: Traces, tmp_path: Path) -> None:
    out = tmp_path / "out"
    demo = start_demo(traces, out)
    await_condition(
        lambda: moment in out.read_text(), lambda: f"{moment!r} in: {out.read_text()}", timeout_s=60
    )
    demo.send_signal(signal.SIGINT if moment == "ckpt dump" else signal.SIGTERM)
    assert demo.wait(60) == 130, out.read_text()
    check_nothing_is_left(traces, out.read_text())


def test_a_demo_whose_reader_goes_away_leaves_nothing(traces: Traces, tmp_path: Path) -> None:
    out = tmp_path / "out"
    demo = start_demo(traces, None)
    assert demo.stdout is not None
    with demo.stdout as pipe, out.open("wb") as file:
        for line in pipe:
            file.write(line)
            if b"fires in" in line:
                break
    assert demo.wait(60) == 128 + signal.SIGPIPE
    check_nothing_is_left(traces, out.read_text())


def test_a_demo_whose_job_dies_says_so_and_leaves_nothing(traces: Traces, tmp_path: Path) -> None:
    out = tmp_path / "out"
    demo = start_demo(traces, out)
    await_condition(lambda: "fires in" in out.read_text(), out.read_text, timeout_s=60)
    job = next(
        line.split()[1] for line in out.read_text().splitlines() if "tree.py" in line and "process" in line
    )
    os.kill(int(job), signal.SIGKILL)
    assert demo.wait(60) == 1, out.read_text()
    assert "scripts/demo:" in out.read_text()
    check_nothing_is_left(traces, out.read_text())
