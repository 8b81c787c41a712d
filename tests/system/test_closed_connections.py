"""With --tcp-close open connections are no obstacle, go on where the workload runs on, and come back closed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from harness.command import Ckpt
from harness.waiting import await_condition

pytestmark = pytest.mark.system

TALKING = """
import socket, sys, time
listening = socket.create_server((sys.argv[1], 0), family=socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET)
near = socket.create_connection(listening.getsockname()[:2])
far, _ = listening.accept()
def ask():
    try:
        near.sendall(b"x")
        return "answered" if far.recv(1) else "ended"
    except OSError as error:
        return type(error).__name__
while True:
    with open(sys.argv[2], "w") as answer:
        answer.write(ask())
    time.sleep(0.02)
"""


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_connections_go_on_here_and_come_back_closed(address: str, ckpt: Ckpt, tmp_path: Path) -> None:
    job, answer = ckpt.new_job_name(), tmp_path / "answer"

    def await_answer(wanted: str) -> None:
        answer.unlink(missing_ok=True)
        await_condition(lambda: answer.exists() and answer.read_text() == wanted, wanted)

    command = (sys.executable, "-I", "-S", "-c", TALKING, address, answer)
    ckpt("run", "--detach", "--name", job, "--", *command)
    await_answer("answered")
    assert ckpt("dump", job, exit_code=30)["error"]["slug"] == "cannot-checkpoint"
    both = ckpt("dump", job, "--tcp-close", "--tcp-established", exit_code=2)
    assert "choose one" in both["error"]["message"]
    ckpt("dump", job, "--tcp-close")
    await_answer("answered")
    stopped = ckpt("dump", job, "--tcp-close", "--stop")
    assert ckpt("check", stopped["id"])["ok"]
    ckpt("restore", job)
    await_answer("BrokenPipeError")
    assert ckpt("dump", job)["id"], "there is no connection any more"
    ckpt("stop", job)
