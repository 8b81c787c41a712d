"""Prove that dump and restore work here: a small process with a listening TCP socket is taken through both.

`criu check` proves nothing: there are kernels on which it passes and every dump of a socket fails.

Rule: the process is our own, in its own session; whatever happens, it is killed and reaped by its pid.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Final

from ckpt.errors import CkptError, CriuError
from ckpt.host.criu import engine, locate
from ckpt.host.criu.request import DumpRequest, RestoreRequest
from ckpt.host.criu.worker import Worker
from ckpt.model.checks import HostCheck, State
from ckpt.units import SECOND, Nanoseconds, Pid

TIMEOUT: Final = Nanoseconds(30 * SECOND)
ANSWER_TIMEOUT_S: Final = 5.0

_NAME: Final = "self-test"

# Counts, and tells the count to everyone who connects.
_SUBJECT: Final = """
import select, socket, sys
listener = socket.socket(fileno=int(sys.argv[1]))
count = 0
while True:
    count += 1
    if select.select([listener], [], [], 0.002)[0]:
        connection, _ = listener.accept()
        connection.sendall(str(count).encode())
        connection.close()
"""


def prove() -> HostCheck:
    """Take one process of our own through dump, kill and restore."""
    if os.geteuid() != 0:
        return HostCheck(
            name=_NAME, state=State.WARNING, detail="not done: that needs root", remedy="Run it as root."
        )
    try:
        before, after = _dump_and_restore(locate.find_criu())
    except CkptError as error:
        lines = error.log_lines if isinstance(error, CriuError) else ()
        return HostCheck(
            name=_NAME,
            state=State.MISSING,
            detail=" / ".join((error.message, *lines)),
            remedy=error.advice or "Run scripts/setup for a CRIU that works on this kernel.",
        )
    except OSError as error:
        return HostCheck(
            name=_NAME,
            state=State.MISSING,
            detail=f"the process does not answer on its port: {error}",
            remedy="Run scripts/setup for a CRIU that works on this kernel.",
        )
    if after <= before:
        return HostCheck(
            name=_NAME,
            state=State.MISSING,
            detail=f"the restored process did not go on counting: {before}, then {after}",
            remedy="Please report it, with the output of 'ckpt doctor'.",
        )
    return HostCheck(
        name=_NAME, state=State.OK, detail="a process with a listening TCP socket was dumped and restored"
    )


def _dump_and_restore(criu: Path) -> tuple[int, int]:
    """The process's count before the dump and after the restore."""
    with tempfile.TemporaryDirectory(prefix="ckpt-self-test-") as directory:
        images = Path(directory) / "images"
        images.mkdir()
        subject, port = _start_subject()
        try:
            before = _ask(port)
            with Worker.start(criu) as worker:
                engine.dump(
                    worker,
                    DumpRequest(pid=Pid(subject.pid), images=images, leave_running=False, timeout=TIMEOUT),
                )
        finally:
            subject.kill()
            subject.wait()
        with Worker.start(criu) as worker:
            restored = engine.restore(
                worker, RestoreRequest(images=images, sibling=True, timeout=TIMEOUT)
            ).pid
        try:
            return before, _ask(port)
        finally:
            _end(restored)


def _start_subject() -> tuple[subprocess.Popen[bytes], int]:
    """The process, and the port on which it listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        subject = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _SUBJECT, str(listener.fileno())],
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(listener.fileno(),),
            start_new_session=True,
        )
        return subject, listener.getsockname()[1]


def _ask(port: int) -> int:
    with socket.create_connection(("127.0.0.1", port), timeout=ANSWER_TIMEOUT_S) as connection:
        return int(connection.recv(32) or b"0")


def _end(pid: Pid) -> None:
    """Kill the restored process and wait for its end; it is our child (`sibling`), so its pid is safe."""
    with suppress(ProcessLookupError, ChildProcessError):
        pidfd = os.pidfd_open(pid)
        try:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            select.select([pidfd], [], [], ANSWER_TIMEOUT_S)
        finally:
            os.close(pidfd)
        os.waitpid(pid, os.WNOHANG)
