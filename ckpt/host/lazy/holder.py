"""The keeper's side of the holder, which outlives it for a moment; see holder_process.py."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from typing import Final

from ckpt.errors import OsRefused
from ckpt.host.lazy.holder_process import DONE, FAULTS, HEARD, RUNS

_PACKAGE_PLACE: Final = os.path.dirname(
    os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
)
_PROGRAM: Final = "import sys; sys.path.insert(0, sys.argv[1]); from ckpt.host.lazy.holder_process import main; main(sys.argv[2:])"
_ANSWER_S: Final = 10.0
_END_S: Final = 30.0


class Holder:
    """A holder that was started; for one thread at a time."""

    def __init__(self) -> None:
        """Start it.

        Raises:
            OsRefused: no process could be started.
        """
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.settimeout(_ANSWER_S)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _PROGRAM, _PACKAGE_PLACE, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
                cwd="/",
            )
        except OSError as error:
            self._socket.close()
            raise _refused("start", error) from error
        finally:
            theirs.close()

    def keep(self, faults: int) -> None:
        """Let it keep a copy of this userfaultfd.

        Raises:
            OsRefused: it is gone.
        """
        self._tell(FAULTS, [faults])

    def runs(self, cgroup: str) -> None:
        """The tasks in the cgroup run: from now on they end with the keeper, unless it says done.

        Raises:
            OsRefused: it is gone.
        """
        self._tell(RUNS + os.fsencode(cgroup), [])

    def done(self) -> None:
        """All pages are there; it ends."""
        try:
            self._socket.send(DONE)
        except OSError as error:
            raise _refused("tell", error) from error
        self._process.wait(_END_S)

    def fail(self) -> None:
        """Have the tasks killed, if they run; returns when they are."""
        self._socket.close()
        self._process.wait(_END_S)

    def _tell(self, message: bytes, fds: list[int]) -> None:
        try:
            socket.send_fds(self._socket, [message], fds)
            answer = self._socket.recv(len(HEARD))
        except OSError as error:
            raise _refused("tell", error) from error
        if answer != HEARD:
            raise OsRefused(operation="tell", subject="the holder of the page faults", reason="it has ended")


def _refused(operation: str, error: OSError) -> OsRefused:
    return OsRefused(
        operation=operation, subject="the holder of the page faults", reason=error.strerror or str(error)
    )
