"""Timers that CRIU alone brings back wrong, and mend_timers() right: seen from inside the restored process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from harness.pauses import Pauses

from ckpt.errors import CriuMissing
from ckpt.host.criu import engine
from ckpt.host.criu.locate import find_criu
from ckpt.host.criu.request import DumpRequest, RestoreRequest
from ckpt.host.criu.timers import mend_timers, pending_timers
from ckpt.host.criu.worker import Worker
from ckpt.model.clocks import TimerKind
from ckpt.units import Pid

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(os.geteuid() != 0, reason="CRIU needs root"),
]

SPAN_S = 60.0

# An absolute timerfd on CLOCK_MONOTONIC, and a periodic one that has expired and is not read before the dump.
SUBJECT = """
import ctypes, json, os, select, struct, sys, time
libc = ctypes.CDLL(None, use_errno=True)
def arm(flags, value, interval):
    fd = libc.timerfd_create(1, 0)
    spec = struct.pack("qqqq", *divmod(interval, 10**9), *divmod(value, 10**9))
    assert libc.timerfd_settime(fd, flags, spec, None) == 0
    return fd
due = time.monotonic_ns() + 2_500_000_000
absolute = arm(1, due, 0)
periodic = arm(0, 50_000_000, 50_000_000)
select.select([periodic], [], [])
with open(sys.argv[1] + ".ready", "w"):
    pass
select.select([absolute], [], [])
fired = time.monotonic_ns()
os.read(periodic, 8)
ticks = [struct.unpack("Q", os.read(periodic, 8))[0] for _ in range(3)]
with open(sys.argv[1] + ".new", "w") as file:
    json.dump({"due": due, "fired": fired, "ticks": ticks}, file)
os.rename(sys.argv[1] + ".new", sys.argv[1])
time.sleep(1000)
"""


def await_file(path: Path) -> None:
    deadline = time.monotonic() + SPAN_S
    pause = threading.Event()
    while not path.exists():
        assert time.monotonic() < deadline, f"{path.name} never came"
        pause.wait(0.005)


@pytest.fixture
def subject(tmp_path: Path) -> Iterator[Pid]:
    process = subprocess.Popen(
        [sys.executable, "-c", SUBJECT, str(tmp_path / "said")],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        await_file(tmp_path / "said.ready")
        yield Pid(process.pid)
    finally:
        process.kill()
        process.wait()


def test_absolute_and_overdue_periodic_timerfds_go_on_after_a_restore(
    tmp_path: Path, subject: Pid, pauses: Pauses
) -> None:
    try:
        criu = find_criu()
    except CriuMissing as error:
        pytest.skip(f"{error} Set CKPT_CRIU to force this test.")
    images = tmp_path / "images"
    work = tmp_path / "work"
    images.mkdir()
    work.mkdir()
    with Worker.start(criu) as worker:
        engine.dump(worker, DumpRequest(pid=subject, images=images, work=work, leave_running=False))
    os.waitid(os.P_PID, subject, os.WEXITED | os.WNOWAIT)
    with suppress(ChildProcessError):
        os.waitpid(subject, 0)

    assert [timer.kind for timer in pending_timers(images)] == [TimerKind.TIMERFD]
    assert mend_timers(images) == 2

    with Worker.start(criu) as worker:
        outcome = engine.restore(worker, RestoreRequest(images=images, work=work))
    restored = time.monotonic_ns()
    try:
        await_file(tmp_path / "said")
    finally:
        os.kill(outcome.pid, signal.SIGKILL)
    said = json.loads((tmp_path / "said").read_text())
    assert said["fired"] >= said["due"]
    # A slow machine has it back when it is overdue.
    assert (said["fired"] - max(said["due"], restored)) / 1e9 - pauses.since(restored / 1e9) < 0.5
    assert said["ticks"] == [1, 1, 1]
