"""The demo of migrations tells its story to the end, its client misses nothing, and it leaves nothing."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.cgroups import unified_mount
from harness.processes import MARK
from harness.subjects import free_port
from harness.traces import Traces
from harness.waiting import await_condition

pytestmark = pytest.mark.system

LIB = Path(__file__).parents[2] / "scripts/lib"
REDIS_MB = 20


def start_demo(traces: Traces, out: Path) -> subprocess.Popen[bytes]:
    """Start the demo without the set-up: tests change no installation."""
    with out.open("wb") as file:
        return subprocess.Popen(
            [sys.executable, LIB / "demo_migrate.py", "--redis-mb", str(REDIS_MB)],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            env={**os.environ, MARK: traces.mark},
        )


def check_nothing_is_left(traces: Traces, said: str) -> None:
    folder = next(word for word in said.split() if word.startswith("/var/tmp/ckpt-demo-"))
    assert not Path(folder).parents[1].exists()
    mount = unified_mount()
    assert mount is not None
    assert not [path.name for path in mount.iterdir() if traces.mark in path.name]
    await_condition(lambda: not traces.processes(), lambda: f"no process to be left: {traces.processes()}")


def test_the_demo_ends_well_and_leaves_nothing(traces: Traces, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert start_demo(traces, out).wait(110) == 0, out.read_text()
    said = out.read_text()
    assert "none is missing, none was made twice" in said
    assert "over its one connection, all of them right" in said
    assert said.count("downtime") == 2
    assert said.count("nothing on either side") == 2
    check_nothing_is_left(traces, said)


@pytest.mark.parametrize("moment", ["it has counted to", "source$ ckpt migrate"])
def test_an_interrupted_demo_leaves_nothing(moment: str, traces: Traces, tmp_path: Path) -> None:
    out = tmp_path / "out"
    demo = start_demo(traces, out)
    await_condition(lambda: moment in out.read_text(), out.read_text, timeout_s=60)
    demo.send_signal(signal.SIGINT)
    assert demo.wait(60) == 130, out.read_text()
    check_nothing_is_left(traces, out.read_text())


@pytest.fixture
def redis(traces: Traces, tmp_path: Path) -> Iterator[int]:
    """A redis of the test's own; gives its port."""
    port = free_port()
    program = shutil.which("redis-server")
    assert program is not None, "redis-server is not installed"
    words = [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(tmp_path)]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, env={**os.environ, MARK: traces.mark})
    try:
        await_condition(lambda: run_client("fill", port, 0).returncode == 0, "redis to answer")
        yield port
    finally:
        process.kill()
        process.wait()


def test_the_client_compares_every_answer_and_sees_a_wrong_one(redis: int, tmp_path: Path) -> None:
    keys = int(run_client("fill", redis, 1).stdout)
    assert keys == 100
    assert int(run_client("compare", redis, keys).stdout) == keys
    found = asked(redis, keys, tmp_path / "fine", lambda: None)
    assert found["wrong"] == ""
    assert found["answers"] > 10
    assert 0 < found["longest_ms"] < 10_000
    found = asked(redis, keys, tmp_path / "counter", lambda: told(redis, "INCR counter"))
    assert "the counter is" in found["wrong"]
    found = asked(redis, 1, tmp_path / "value", lambda: told(redis, "SET value:0 other"))
    assert "value:0 is not what was stored" in found["wrong"]
    assert int(run_client("compare", redis, keys).stdout) == keys - 1
    found = asked(redis, keys, tmp_path / "closed", lambda: told(redis, "CLIENT KILL TYPE normal"))
    assert "answers: " in found["wrong"]


def asked(port: int, keys: int, report: Path, meanwhile: object) -> dict[str, object]:
    """What the client reports when this is done while it asks."""
    stop, begun = Path(f"{report}.stop"), Path(f"{report}.begun")
    client = threading.Thread(target=run_client, args=("ask", port, keys, report))
    client.start()
    try:
        await_condition(begun.exists, "the first answer")
        assert callable(meanwhile)
        meanwhile()
        # It ends by itself at the first answer that is wrong.
        client.join(0.5)
    finally:
        stop.touch()
        client.join()
    found: dict[str, object] = json.loads(report.read_text())
    return found


def told(port: int, command: str) -> None:
    """Give redis a command over another connection."""
    with socket.create_connection(("127.0.0.1", port), 10) as connection:
        connection.sendall(command.encode() + b"\r\n")
        connection.recv(100)


def run_client(act: str, port: int, *words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, LIB / "redis_client.py", act, "127.0.0.1", str(port), *map(str, words)]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
