"""The way of the pages within this process: a pair of sockets between the keeper and who has the pages."""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import Final

from ckpt.errors import PeerFailed


class LocalLink:
    """One end. Fits ckpt.host.lazy.wire.Link."""

    def __init__(self, end: socket.socket, host: str) -> None:
        """Take over this socket; `host` is what the other end is called."""
        self.host: Final = host
        self._socket = end

    @classmethod
    def pair(cls, first: str, second: str) -> tuple[LocalLink, LocalLink]:
        """Both ends: of who is called `first`, and of `second`."""
        one, other = socket.socketpair()
        return cls(one, second), cls(other, first)

    def read_into(self, into: memoryview) -> None:
        """Fill this, however long it takes.

        Raises:
            PeerFailed: it ended.
        """
        done = 0
        while done < len(into):
            try:
                # A process that was stopped and goes on gets less than it asked for.
                count = self._socket.recv_into(into[done:], len(into) - done, socket.MSG_WAITALL)
            except OSError as error:
                raise self._failed(error) from None
            if not count:
                raise PeerFailed(host=self.host, reason="it ended")
            done += count

    def write(self, content: bytes | memoryview) -> None:
        """Send all of this.

        Raises:
            PeerFailed: it ended.
        """
        try:
            self._socket.sendall(content)
        except OSError as error:
            raise self._failed(error) from None

    def end(self) -> None:
        """End reading and writing, of whichever thread; safe to repeat."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Let go of it, when nobody uses it any more; safe to repeat."""
        self._socket.close()

    def _failed(self, error: OSError) -> PeerFailed:
        return PeerFailed(host=self.host, reason=error.strerror or str(error))
