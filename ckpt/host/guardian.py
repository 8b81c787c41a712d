"""The guardian: a small process that undoes an operation at once when its controller dies.

This is the controller's side; guardian_process.py is the process. It holds a socket to the controller. The
word "done" dismisses it; the end of the socket without that word, or of the controller, makes it undo what
the journal says (recovery.py).

Rules:
- It is up, with all code that it needs in memory, before anything is frozen: after a freeze under memory
  pressure, or on a full disk, it must not have to load anything.
- It has nothing of the controller but the socket: no terminal, no pipe that somebody waits at, no session.
- It ignores the signals that end a whole session or group; whoever means it must kill it by SIGKILL.
  Then the controller starts another one before the next freeze, and `ckpt recover` stands behind both.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from typing import Final, Self

from ckpt.errors import OsRefused
from ckpt.host.guardian_process import DONE, READY

START_TIMEOUT_S: Final = 10.0
END_TIMEOUT_S: Final = 2.0
COMPLAINTS_NAME: Final = "guardian.log"
"""Its stderr, in the operation's directory: empty unless the guardian itself is at fault."""

_PACKAGE_PLACE: Final = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
# -I -S: neither the user's settings nor the packages of others are loaded: 9 ms instead of 60.
_PROGRAM: Final = (
    "import sys; sys.path.insert(0, sys.argv[1]); from ckpt.host.guardian_process import main; "
    "main(sys.argv[2:])"
)


class Guardian:
    """The controller's side: a guardian that was started."""

    def __init__(self, process: subprocess.Popen[bytes], channel: socket.socket, complaints: str) -> None:
        self._process = process
        self._channel = channel
        self._complaints = complaints
        self._ready = False

    @classmethod
    def start(cls, directory: str) -> Self:
        """Start a guardian for the operation in `directory`; it is not ready yet when this returns.

        Raises:
            OsRefused: no process could be started.
        """
        ours, theirs = socket.socketpair()
        try:
            complaints = open(f"{directory}/{COMPLAINTS_NAME}", "wb")  # noqa: SIM115 - closed below
        except OSError as error:
            ours.close()
            theirs.close()
            raise _cannot_start(error.strerror or str(error)) from error
        try:
            process = subprocess.Popen(
                [
                    sys.executable,
                    *("-I", "-S", "-c", _PROGRAM, _PACKAGE_PLACE),
                    *(directory, str(theirs.fileno()), str(os.getpid())),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=complaints,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
                cwd="/",
            )
        except OSError as error:
            ours.close()
            raise _cannot_start(error.strerror or str(error)) from error
        finally:
            theirs.close()
            complaints.close()
        return cls(process, ours, complaints.name)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def await_ready(self) -> None:
        """Return when it watches.

        Raises:
            OsRefused: it ended, or is not up within START_TIMEOUT_S.
        """
        if self._ready:
            return
        self._channel.settimeout(START_TIMEOUT_S)
        try:
            self._ready = self._channel.recv(len(READY)) == READY
        except OSError:
            self._ready = False
        if not self._ready:
            raise _cannot_start(_last_line(self._complaints) or "it did not come up")

    def alive(self) -> bool:
        """Whether it still runs."""
        return self._process.poll() is None

    def dismiss(self) -> None:
        """Let it go without undoing anything, and wait until it has gone."""
        with contextlib.suppress(OSError):  # it is gone already
            self._channel.sendall(DONE)
        self._channel.close()
        try:
            self._process.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:  # somebody has stopped it
            self._process.kill()
            self._process.wait()


def _cannot_start(reason: str) -> OsRefused:
    return OsRefused(operation="start", subject="the guardian", reason=reason)


def _last_line(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            lines = stream.read(64 * 1024).strip().splitlines()
    except OSError:
        return ""
    return lines[-1] if lines else ""
