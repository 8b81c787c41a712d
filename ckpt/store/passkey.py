"""The secret that opens an encrypted store: from a file, or from what a command prints.

Rules: one newline at the end is not part of the secret. An empty secret is none, and a file that others can read
is no secret. The command is run by the shell, without a terminal or standard input, in a session of its own, so
that nothing of it is left when it has not finished in time.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import threading
from contextlib import suppress
from typing import IO, Final, Self

from ckpt.errors import CommandFailed, OsRefused
from ckpt.store import guarded

SECRET_BYTES_MAX: Final = 64 * 1024
COMMAND_SECONDS_MAX: Final = 60.0

_GENERATED_BYTES: Final = 32
_COMPLAINT_BYTES: Final = 2000
_TIMED_OUT: Final = 124
"""What timeout(1) gives for a command that it ended."""


def read_key_file(path: str) -> bytes:
    """The secret in a file, or at the end of a pipe.

    Raises:
        OsRefused: it cannot be read, others can read it, or it is empty or too long.
    """
    with guarded.converted("read", path), open(path, "rb", buffering=0) as file:
        guarded.check_secret(path, os.fstat(file.fileno()))
        content = _at_most(file, SECRET_BYTES_MAX + 1)
    if len(content) > SECRET_BYTES_MAX:
        raise _no_secret(path, f"it has more than {SECRET_BYTES_MAX} bytes")
    secret = content.removesuffix(b"\n")
    if not secret:
        raise _no_secret(path, "it is empty")
    return secret


def run_key_command(command: str, *, timeout_s: float = COMMAND_SECONDS_MAX) -> bytes:
    """The secret that the command prints.

    Raises:
        CommandFailed: it failed, printed nothing or too much, or did not finish in time and was ended.
    """
    with subprocess.Popen(  # noqa: S602 - the operator's own words, as in $EDITOR
        command,
        shell=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        bufsize=0,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        complaint = bytearray()
        listener = threading.Thread(target=_keep_end, args=(process.stderr, complaint), daemon=True)
        listener.start()
        with _Watchdog(process.pid, timeout_s) as watchdog:
            content = _at_most(process.stdout, SECRET_BYTES_MAX + 1)
            if len(content) > SECRET_BYTES_MAX:
                watchdog.kill()
            listener.join()
            # It may have closed both, and run on. It is not reaped yet: its number must stay its own until
            # nobody kills by it any more.
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        status = process.wait()
    if len(content) > SECRET_BYTES_MAX:
        raise _failed(command, status, f"it printed more than {SECRET_BYTES_MAX} bytes")
    if watchdog.timed_out:
        raise _failed(command, _TIMED_OUT, f"it did not finish within {timeout_s:g} s and was ended")
    if status != 0:
        said = complaint.decode("utf-8", "replace").strip()
        raise _failed(command, status, said or "it printed no reason")
    secret = content.removesuffix(b"\n")
    if not secret:
        raise _failed(command, status, "it printed nothing")
    return secret


def generate_key_file(path: str) -> None:
    """Make a file with a new secret of 256 bits, mode 0600; it is durable when this returns.

    Raises:
        OsRefused: there is a file already, or it cannot be made.
        NoSpace: it does not fit.
    """
    guarded.create(path, f"{secrets.token_hex(_GENERATED_BYTES)}\n".encode("ascii"))


class _Watchdog:
    """Kills a session when the time is over, when it is told to, and when its context ends by an error."""

    def __init__(self, session: int, timeout_s: float) -> None:
        self.timed_out = False
        self._session = session
        self._timer = threading.Timer(timeout_s, self._bark)

    def __enter__(self) -> Self:
        self._timer.start()
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        self._timer.cancel()
        self._timer.join()
        if error is not None:
            self.kill()

    def kill(self) -> None:
        """End every process of it that has not gone into a session of its own."""
        with suppress(ProcessLookupError):
            os.killpg(self._session, signal.SIGKILL)

    def _bark(self) -> None:
        self.timed_out = True
        self.kill()


def _at_most(file: IO[bytes], count: int) -> bytes:
    """All bytes until the end, or the first `count` of them."""
    content = bytearray()
    while len(content) < count and (piece := file.read(count - len(content))):
        content += piece
    return bytes(content)


def _keep_end(file: IO[bytes], kept: bytearray) -> None:
    """Read to the end, and keep the last of it."""
    while piece := file.read(_COMPLAINT_BYTES):
        kept += piece
        del kept[:-_COMPLAINT_BYTES]


def _no_secret(path: str, reason: str) -> OsRefused:
    return OsRefused(
        operation="use",
        subject=f"the key file {path}",
        reason=reason,
        remedy="Name the file that the store was made with: --key-file, or CKPT_KEY_FILE.",
    )


def _failed(command: str, status: int, output: str) -> CommandFailed:
    return CommandFailed(command=command, status=status, output=output)
