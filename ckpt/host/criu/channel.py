"""One CRIU process and the socket to it: messages go out and come in, and nothing waits for ever.

Rules: a wait ends by a message, by CRIU's end, by the deadline or by cancel(), whichever is first; none of
them is polled for. What is sent is one datagram, what comes is one, with at most one descriptor.
Source: criu/cr-service.c (recv_criu_msg, send_criu_msg_with_fd); unix(7), SOCK_SEQPACKET.
"""

from __future__ import annotations

import array
import os
import select
import socket
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from ckpt.errors import CriuDied
from ckpt.host.criu.launch import Child, Launch, Launcher, swrk_command
from ckpt.host.criu.pb import DecodeError, rpc
from ckpt.units import SECOND, Nanoseconds

_MESSAGE_BYTES_MAX: Final = 1 << 20
"""CRIU's answers are some hundred bytes; the longest carries one line of its log."""

_WORDS_BYTES_MAX: Final = 8192

END_TIMEOUT: Final = Nanoseconds(10 * SECOND)


class OutOfTimeError(Exception):
    """The deadline passed; CRIU still runs."""


class CancelledError(Exception):
    """cancel() was called; CRIU still runs."""


class EndedError(Exception):
    """CRIU ended without the message that was waited for; `status` as Child.wait() gives it."""

    def __init__(self, status: int | None) -> None:
        super().__init__(status)
        self.status = status


class Channel:
    """A running `criu swrk`; close() ends it."""

    def __init__(
        self, criu: Path, launcher: Launcher, *, kept_fds: tuple[int, ...] = (), terminal: bool = False
    ) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket = ours
        self._cancelled = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._errors = os.memfd_create("criu-stderr", os.MFD_CLOEXEC)
        try:
            with theirs:
                theirs_fd = theirs.fileno()
                self._child: Child = launcher(
                    Launch(
                        command=swrk_command(criu, theirs_fd),
                        channel_fd=theirs_fd,
                        errors_fd=self._errors,
                        kept_fds=kept_fds,
                        terminal=terminal,
                    )
                )
        except BaseException:
            ours.close()
            os.close(self._cancelled)
            os.close(self._errors)
            raise
        try:
            self._pidfd = os.pidfd_open(self._child.pid)
        except OSError:
            # It has ended already: the end of its socket says so at the first wait.
            self._pidfd = -1
        self._closed = False
        self._last_words = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def child(self) -> Child:
        """The process."""
        return self._child

    def send(self, request: Any) -> None:
        """Send one request or reply.

        Raises:
            EndedError: nobody reads it any more.
        """
        try:
            self._socket.send(request.SerializeToString(), socket.MSG_NOSIGNAL)
        except OSError as error:
            raise EndedError(self._child.wait(END_TIMEOUT)) from error

    def receive(self, deadline: Nanoseconds, *, cancellable: bool = True) -> tuple[Any, int | None]:
        """Wait for one message until `deadline` (CLOCK_MONOTONIC); the descriptor that it carries is yours.

        Raises:
            EndedError, OutOfTimeError, CancelledError: as their docstrings say.
        """
        self._await_readable(deadline, cancellable=cancellable)
        fds = array.array("i")
        try:
            data, ancillary, flags, _ = self._socket.recvmsg(
                _MESSAGE_BYTES_MAX, socket.CMSG_SPACE(fds.itemsize), socket.MSG_CMSG_CLOEXEC
            )
        except ConnectionResetError:
            data, ancillary, flags = b"", [], 0
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
        fd = fds[0] if fds else None
        if not data:
            _close(fd)
            raise EndedError(self._child.wait(END_TIMEOUT))
        response = rpc.criu_resp()
        try:
            # Of a datagram that was cut short nothing is believed: b"\xff" never parses.
            response.ParseFromString(data if not flags & socket.MSG_TRUNC else b"\xff")
        except DecodeError as error:
            _close(fd)
            raise CriuDied(
                operation="its answer", status="still running", cause="it sent a message that cannot be read"
            ) from error
        return response, fd

    def cancel(self) -> None:
        """End the present wait, or the next one; may be called from any thread, and from a signal handler."""
        with suppress(OSError):
            os.eventfd_write(self._cancelled, 1)

    @property
    def is_cancelled(self) -> bool:
        """Whether cancel() was called."""
        return bool(select.select([self._cancelled], [], [], 0)[0])

    @property
    def last_words(self) -> str:
        """What CRIU wrote to stderr: errors from before it had a log."""
        if self._closed:
            return self._last_words
        return os.pread(self._errors, _WORDS_BYTES_MAX, 0).decode("utf-8", errors="replace").strip()

    def kill(self) -> None:
        """End CRIU at once and wait until it is gone."""
        self._child.kill()
        self._child.wait(END_TIMEOUT)

    def close(self, patience: Nanoseconds = END_TIMEOUT) -> int | None:
        """Give CRIU so much time to end by itself, then end it; its exit status. Safe to repeat."""
        if self._closed:
            return self._child.wait(Nanoseconds(0))
        # Without a request under way, the end of the connection ends CRIU.
        self._socket.close()
        status = self._child.wait(patience)
        if status is None:
            self.kill()
        self._last_words = self.last_words
        self._closed = True
        os.close(self._cancelled)
        os.close(self._errors)
        if self._pidfd >= 0:
            os.close(self._pidfd)
        return status

    def _await_readable(self, deadline: Nanoseconds, *, cancellable: bool) -> None:
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        if cancellable:
            poll.register(self._cancelled, select.POLLIN)
        if self._pidfd >= 0:
            # A restored task, or a launcher, may hold a copy of CRIU's end: then its death closes nothing.
            poll.register(self._pidfd, select.POLLIN)
        left_ns = deadline - time.monotonic_ns()
        ready = {fd for fd, _ in poll.poll(max(0, -(-left_ns // 1_000_000)))}
        if self._cancelled in ready:
            raise CancelledError
        if self._socket.fileno() in ready:
            return
        if self._pidfd in ready:
            raise EndedError(self._child.wait(END_TIMEOUT))
        raise OutOfTimeError


def _close(fd: int | None) -> None:
    if fd is not None:
        os.close(fd)
