"""What controllers say to the supervisor: one request a message, one answer each, descriptors beside.

    PING      who serves
    ADD       answer the calls of these listeners too (SCM_RIGHTS)
    RELOAD    the table has changed
    STOP      end

The answer is DONE and the pids of the two processes, or FAILED and the reason.
Rule: only the standard library is imported: the supervisor's processes hold this module in their memory.
Source: unix(7).
"""

from __future__ import annotations

import os
import socket
import struct
from contextlib import suppress
from typing import Final

PING, ADD, RELOAD, STOP = b"ping", b"add", b"reload", b"stop"
DONE, FAILED = b"done", b"failed"
MESSAGE_BYTES_MAX: Final = 256
LISTENERS_PER_MESSAGE_MAX: Final = 200

_FD: Final = struct.Struct("i")
_CREDENTIALS: Final = struct.Struct("3i")


class Conversations:
    """The connections of controllers, by descriptor."""

    def __init__(self) -> None:
        self._connections: dict[int, socket.socket] = {}

    def __bool__(self) -> bool:
        return bool(self._connections)

    def __contains__(self, fd: int) -> bool:
        return fd in self._connections

    def accept(self, control: socket.socket) -> int | None:
        """Take a new connection; None if it is not one of root's or of our own user's."""
        connection, _ = control.accept()
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        if _CREDENTIALS.unpack(credentials)[1] not in (0, os.geteuid()):
            connection.close()
            return None
        connection.setblocking(False)
        self._connections[connection.fileno()] = connection
        return connection.fileno()

    def hear(self, fd: int) -> tuple[bytes, list[int]]:
        """A request and the descriptors that came with it; b"" at the end.

        Raises:
            BlockingIOError: nothing was said.
        """
        room = socket.CMSG_SPACE(LISTENERS_PER_MESSAGE_MAX * _FD.size)
        try:
            request, ancillary, _, _ = self._connections[fd].recvmsg(
                MESSAGE_BYTES_MAX, room, socket.MSG_CMSG_CLOEXEC
            )
        except ConnectionError:
            return b"", []
        fds: list[int] = []
        for level, kind, content in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                whole = content[: len(content) // _FD.size * _FD.size]
                fds += (each for (each,) in _FD.iter_unpack(whole))
        return request, fds

    def say(self, fd: int, answer: bytes) -> None:
        """Answer; who is not there any more does not hear it."""
        with suppress(OSError):
            self._connections[fd].send(answer[:MESSAGE_BYTES_MAX])

    def end(self, fd: int) -> None:
        """Close one."""
        self._connections.pop(fd).close()

    def end_all(self) -> None:
        """Close all."""
        for connection in self._connections.values():
            connection.close()
        self._connections.clear()
