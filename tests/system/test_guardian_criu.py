"""kill -9 of a controller whose real CRIU is at work on the frozen workload: it survives, and runs within a second.

CRIU notices that its socket is closed only at its next notification; in the middle of writing a big process
the guardian must end it, and thaw what CRIU leaves.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from harness.pauses import Pauses
from harness.waiting import await_condition
from real.controllers import ROOT, said_pid
from real.ticking import await_true, is_running, scratch_cgroup, ticking

from ckpt.errors import CriuMissing
from ckpt.host import cgroups, recovery
from ckpt.host.criu import netlock
from ckpt.host.criu.locate import find_criu

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(os.geteuid() != 0, reason="CRIU needs root"),
    pytest.mark.skipif(cgroups.unified() is None, reason="no cgroup version 2 is mounted"),
]
BIG = 400 << 20

# Sends back what comes; too big to be written in the moment until somebody sees that it is being written.
ECHO = """
import socket, sys
ballast = bytearray(b"x") * (900 << 20)
connection = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
while data := connection.recv(100):
    connection.sendall(data)
"""

PROGRAM = """
import os, signal, sys, threading, time
from pathlib import Path
from ckpt.errors import CriuDied
from ckpt.host.criu import engine
from ckpt.host.criu.locate import find_criu
from ckpt.host.criu.request import DumpRequest
from ckpt.host.criu.worker import Worker
from ckpt.host.operations import JournaledOperations
from ckpt.host.targets import HostTargets
from ckpt.model.target import TargetRef
from ckpt.model.workload import TargetKind
from ckpt.units import SECOND, Nanoseconds, Pid
state, root, moment = sys.argv[1], int(sys.argv[2]), sys.argv[3]
tcp = "tcp" in sys.argv
hold = next((word for word in sys.argv if word.startswith("/sys/")), "")

def die(_=None):
    if hold:  # it stays where it is until the guardian comes, however fast it writes
        Path(hold, "cgroup.procs").write_text(str(worker.pid))
        Path(hold, "cgroup.freeze").write_text("1")
    for pid in [worker.pid, root] if sys.argv[-1] == "all" else []:
        os.kill(pid, signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)

def die_when_pages_are_written(images):
    while not any(each.stat().st_size > 1 << 20 for each in images.glob("pages-*.img")):
        time.sleep(0.001)
    die()

targets = HostTargets(state, lambda job: None)
target = targets.resolve(TargetRef(kind=TargetKind.PID, name=str(root)))
operation = JournaledOperations(state).begin("a test")
operation.guard()
worker = Worker.start(find_criu())
images = Path(operation.staging)
operation.note_criu(worker.pid, log=str(images / "dump.log"))
freezer = targets.freezer(target, operation)
freezer.gather()
freezer.freeze(Nanoseconds(5 * SECOND))
print("criu", worker.pid, flush=True)
if moment == "writing":
    threading.Thread(target=die_when_pages_are_written, args=(images,), daemon=True).start()
request = DumpRequest(pid=Pid(root), images=images, freeze_cgroup=Path(freezer.cgroup), tcp_established=tcp)
hooks = {moment: die} if moment != "writing" else {}
try:
    engine.dump(worker, request, hooks)
except CriuDied:
    # By our own hand, which is about to kill this process, too.
    time.sleep(60)
print("dumped", flush=True)
sys.stdin.read()
"""


@pytest.mark.alone
@pytest.mark.parametrize("moment", ["pre-dump", "writing", "post-dump"])
def test_the_workload_survives_a_controller_that_dies_while_criu_works(
    tmp_path: Path, moment: str, pauses: Pauses
) -> None:
    _need_criu()
    unified = cgroups.unified()
    assert unified is not None
    with ticking(2, BIG) as subject:
        place = subject.place(unified)
        with controlled(tmp_path, subject.root, moment) as controller:
            criu = said_pid(controller, "criu")
            assert controller.wait(30) == -signal.SIGKILL
            died = time.monotonic()
            await_true(lambda: subject.runs(0.02), "the workload runs", 1.5)
            assert pauses.ran_s(died) < 1.0
            assert not is_running(criu)
        await_true(lambda: not list((tmp_path / "operations").iterdir()), "the operation is gone")
        assert subject.place(unified) == place
        assert subject.runs()
        assert recovery.recover_dead(str(tmp_path)) == ()


@pytest.mark.alone
@pytest.mark.parametrize("killed", ["controller", "all"])
def test_a_connection_survives_a_criu_that_was_killed_with_the_socket_in_its_hands(
    killed: str, tmp_path: Path
) -> None:
    _need_criu()
    unified = cgroups.unified()
    assert unified is not None
    before = netlock.list_tables()
    with scratch_cgroup(unified) as hold, socket.create_server(("127.0.0.1", 0)) as server:
        how = (hold,) if killed == "controller" else (killed,)
        subject = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", ECHO, str(server.getsockname()[1])],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        peer, _ = server.accept()
        try:
            with controlled(tmp_path, subject.pid, "writing", "tcp", *how) as controller:
                said_pid(controller, "criu")
                assert controller.wait(30) == -signal.SIGKILL
            await_true(lambda: not list((tmp_path / "operations").iterdir()), "the operation is gone")
            if killed == "all":
                # The lock of what nobody restores is nobody's.
                assert set(netlock.list_tables()) <= set(before)
                return
            peer.settimeout(5)
            peer.sendall(b"still there?")
            assert peer.recv(100) == b"still there?"
            # The guardian leaves word at its end, all at once.
            word = tmp_path / "recovered.log"
            log = await_condition(lambda: word.exists() and word.read_text(), "the guardian's word")
            assert "mended its connections, removed the network lock" in log
            assert subject.poll() is None
        finally:
            peer.close()
            subject.kill()
            subject.wait()


@contextmanager
def controlled(state: Path, root: int, moment: str, *words: str) -> Iterator[subprocess.Popen[str]]:
    controller = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(state), str(root), moment, *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    try:
        yield controller
    finally:
        controller.kill()
        controller.communicate()


def _need_criu() -> None:
    try:
        find_criu()
    except CriuMissing as error:
        pytest.skip(f"{error} Set CKPT_CRIU to force this test.")
