"""The controller's side of the supervisor: start it, give it listeners and a table, end it.

server_process.py is the two processes. A layer has a directory: the table, who serves, and the socket at which
any later controller reaches them.

Rules:
- The two have nothing of the controller but its cgroup and the descriptors that they need: no terminal, no pipe
  that somebody waits at, no session.
- When a call here returns, both processes know what was said: kill -9 of one of them loses nothing.
- A request is asked again when the process that took it died meanwhile; all of them may be asked twice.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Final, Self

from ckpt.errors import FeatureMissing, OsRefused
from ckpt.host.virtual import registry
from ckpt.host.virtual.calls import stat_calls
from ckpt.host.virtual.conversation import (
    ADD,
    DONE,
    LISTENERS_PER_MESSAGE_MAX,
    MESSAGE_BYTES_MAX,
    PING,
    RELOAD,
    STOP,
)
from ckpt.host.virtual.directory import CONTROL_NAME, LOG_NAME, NEW, TABLE_NAME
from ckpt.host.virtual.table import IdentityTable
from ckpt.units import Pid

START_TIMEOUT_S: Final = 20.0
REQUEST_TIMEOUT_S: Final = 10.0

_RETRY_S: Final = 0.02
_BACKLOG: Final = 16
_PACKAGE_PLACE: Final = os.path.dirname(
    os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
)
# -I -S: neither the user's settings nor the packages of others are loaded.
_PROGRAM: Final = (
    "import sys; sys.path.insert(0, sys.argv[1]); from ckpt.host.virtual.server_process import main; "
    "main(sys.argv[2:])"
)


class VirtualServer:
    """A layer's supervisor, as a controller sees it."""

    def __init__(self, directory: str, process: subprocess.Popen[bytes] | None = None) -> None:
        self._directory = directory
        self._starting = process
        self._connection: socket.socket | None = None

    @classmethod
    def start(cls, table: IdentityTable, directory: str) -> Self:
        """Start a supervisor for the layer in `directory`, which is there; it need not be ready when this returns.

        It ends by itself when this controller goes before any listener was added, or when no task uses any
        of them any more.

        Raises:
            FeatureMissing: the architecture's calls are not known.
            OsRefused: no process could be started.
        """
        if stat_calls() is None:
            raise FeatureMissing(
                feature="the numbers of the stat calls of this architecture",
                remedy="Restore with --inodes ignore.",
            )
        try:
            _write_table(directory, table)
            with (
                _listening(directory) as control,
                open(f"{directory}/{LOG_NAME}", "wb") as log,
            ):
                process = subprocess.Popen(
                    [
                        sys.executable,
                        *("-I", "-S", "-c", _PROGRAM, _PACKAGE_PLACE),
                        *(os.path.abspath(directory), str(control.fileno())),
                    ],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=log,
                    pass_fds=(control.fileno(),),
                    start_new_session=True,
                    cwd="/",
                )
        except OSError as error:
            raise _failed("start", error.strerror or str(error)) from error
        server = cls(directory, process)
        try:
            # Held open from now on: the supervisor ends if it goes before there is anything to do.
            server._connection = _connect(directory)
        except OSError as error:
            process.kill()
            process.wait()
            raise _failed("start", error.strerror or str(error)) from error
        return server

    @classmethod
    def of_layer(cls, directory: str) -> Self:
        """The supervisor that serves the layer in `directory`."""
        return cls(directory)

    def await_ready(self) -> tuple[Pid, ...]:
        """Return when both processes serve; their pids, the one that answers first.

        Raises:
            OsRefused: they did not come up within START_TIMEOUT_S.
        """
        return self._ask(PING, timeout_s=START_TIMEOUT_S)

    def add(self, listeners: Iterable[int]) -> None:
        """Answer the calls of these filters too; the descriptors may be closed afterwards. Raises OsRefused."""
        waiting = list(listeners)
        while waiting:
            self._ask(ADD, waiting[:LISTENERS_PER_MESSAGE_MAX])
            del waiting[:LISTENERS_PER_MESSAGE_MAX]

    def replace_table(self, table: IdentityTable) -> None:
        """Answer by this table from now on. Raises OsRefused."""
        try:
            _write_table(self._directory, table)
        except OSError as error:
            raise _failed("write the table of", error.strerror or str(error)) from error
        self._ask(RELOAD)

    def stop(self) -> None:
        """End both processes, and remove the directory if they could not; no error if they have ended.

        The calls of tasks that have the filter still give ENOSYS then: end these first.
        """
        try:
            pids = self._ask(STOP)
        except OsRefused:
            if self._starting is not None:
                self._starting.kill()
            pids = registry.servers_of(self._directory)
            # The one that stands by first: else it would take over.
            for pid in reversed(pids):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self.close()
        deadline = time.monotonic() + REQUEST_TIMEOUT_S
        while any(map(registry.serves, pids)) and time.monotonic() < deadline:
            time.sleep(_RETRY_S)
        registry.remove(self._directory)

    def close(self) -> None:
        """Let go of it; it serves on, unless it has nothing to do yet."""
        self._drop()
        if self._starting is not None:
            # It left its child behind and ended, or will in a moment.
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._starting.wait(START_TIMEOUT_S)
            self._starting = None

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _ask(
        self, request: bytes, fds: list[int] | None = None, *, timeout_s: float = REQUEST_TIMEOUT_S
    ) -> tuple[Pid, ...]:
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                if self._connection is None:
                    self._connection = _connect(self._directory)
                self._connection.settimeout(max(0.01, deadline - time.monotonic()))
                socket.send_fds(self._connection, [request], fds or [])
                answer = self._connection.recv(MESSAGE_BYTES_MAX)
            except (ConnectionError, BrokenPipeError):
                answer = b""
            except OSError as error:
                raise _failed("reach", self._complaint() or error.strerror or "it does not answer") from error
            word, _, rest = answer.partition(b" ")
            if word == DONE:
                return tuple(Pid(int(pid)) for pid in rest.split())
            if word:
                raise _failed("instruct", rest.decode(errors="replace"))
            # The one that took the request died: the other one takes over, and hears it again.
            self._drop()
            if time.monotonic() > deadline or not self._serves():
                raise _failed("reach", self._complaint() or "it has ended")
            time.sleep(_RETRY_S)

    def _serves(self) -> bool:
        try:
            _connect(self._directory).close()
        except OSError:
            return False
        return True

    def _complaint(self) -> str:
        try:
            with open(f"{self._directory}/{LOG_NAME}", encoding="utf-8", errors="replace") as stream:
                lines = stream.read(64 * 1024).strip().splitlines()
        except OSError:
            return ""
        return lines[-1] if lines else ""


@contextlib.contextmanager
def _listening(directory: str) -> Iterator[socket.socket]:
    with _short(directory) as short, socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as control:
        control.bind(f"{short}/{CONTROL_NAME}")
        control.listen(_BACKLOG)
        yield control


def _connect(directory: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        with _short(directory) as short:
            connection.connect(f"{short}/{CONTROL_NAME}")
    except OSError:
        connection.close()
        raise
    return connection


@contextlib.contextmanager
def _short(directory: str) -> Iterator[str]:
    """A short name of the directory: the address of a socket has 108 bytes."""
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)


def _write_table(directory: str, table: IdentityTable) -> None:
    path = f"{directory}/{TABLE_NAME}"
    with open(path + NEW, "wb") as stream:
        stream.write(table.encode())
    os.replace(path + NEW, path)


def _failed(operation: str, reason: str) -> OsRefused:
    return OsRefused(operation=operation, subject="the supervisor of the virtual layer", reason=reason)
