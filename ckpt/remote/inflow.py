"""What comes from the other side: messages, and the payloads that follow some of them.

Rules: a payload goes from the stream into its buffer without a copy in between. Whoever waits gives up when nothing
came for `silence_s`. $CKPT_SILENCE_S, on both sides, is another patience than SILENCE_S, in seconds: for tests.
Source: pipe(7), F_SETPIPE_SZ in fcntl(2).
"""

from __future__ import annotations

import fcntl
import os
import select
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Final

from ckpt.codec.messages import Read, Wanted, read_message
from ckpt.codec.migration_messages import PAYLOAD_BYTES_MAX, WithPayload
from ckpt.errors import PeerFailed
from ckpt.remote.compression import Compressor

SILENCE_S: Final = float(os.environ.get("CKPT_SILENCE_S", "30"))
"""So long may the other side say nothing: it says that it is alive every ALIVE_EVERY_S."""

_AHEAD_BYTES: Final = 64 << 10
_PIPE_BYTES: Final = 1 << 20


class Inflow:
    """A stream of bytes from the other side, which errors call `peer`."""

    def __init__(self, read: Read, peer: str) -> None:
        """Take the bytes from `read`."""
        self.peer = peer
        self.silence_s: float | None = None
        self._read = read
        self._switched: Callable[[memoryview], int] | None = None
        self._ahead = bytearray(_AHEAD_BYTES)
        self._next = self._end = 0
        self._payload = memoryview(b"")
        self._packed = memoryview(b"")

    @property
    def has_some(self) -> bool:
        """Whether the next read() waits for nothing; where it is false, it may all the same."""
        return self._next < self._end

    def read(self, count: int) -> bytes:
        """At most `count` bytes, at least one, or none at the end.

        Raises:
            PeerFailed: nothing came in time, or the connection broke.
        """
        if self._next == self._end:
            self._next, self._end = 0, self._more(memoryview(self._ahead))
        found = bytes(self._ahead[self._next : min(self._end, self._next + count)])
        self._next += len(found)
        return found

    def message(self, expected: Collection[type[Wanted]]) -> Wanted | None:
        """The next message; None if the stream ends before it begins.

        Raises:
            PeerFailed: what comes is no message, or not one of the expected ones, or nothing in time.
        """
        return read_message(self.read, expected, self.peer)

    def payload(self, message: WithPayload, compressor: Compressor | None) -> memoryview:
        """The plain payload of this message, which was read last; it is valid until the next one is read.

        Raises:
            PeerFailed: the stream ends within it, or it is not compressed as it should be.
        """
        if not self._payload:
            self._payload = memoryview(bytearray(PAYLOAD_BYTES_MAX))
        content = self._payload[: message.size_bytes]
        self._read_into(content)
        if not message.is_compressed:
            return content
        if compressor is None:
            raise PeerFailed(host=self.peer, reason="it compresses, and nobody agreed to that")
        plain = compressor.decompress(content, message.plain_bytes)
        if len(plain) != message.plain_bytes:
            raise PeerFailed(
                host=self.peer,
                reason=f"a payload of {len(plain)} bytes where {message.plain_bytes} were said",
            )
        return memoryview(plain)

    def skip_payload(self, message: WithPayload) -> None:
        """Drop the payload of this message, which was read last.

        Raises:
            PeerFailed: the stream ends within it.
        """
        rest = message.size_bytes
        while rest:
            piece = len(self.read(rest))
            if not piece:
                raise self._cut(rest, message.size_bytes)
            rest -= piece

    def switch(self, fill: Callable[[memoryview], int]) -> None:
        """Go on with another stream: `fill` puts at least one byte of it into a buffer, and gives how many, 0 at the end.

        What came over the first one and was not read is dropped.
        """
        self._next = self._end = 0
        self._switched = fill

    def _read_into(self, content: memoryview) -> None:
        """Fill it."""
        start = self._ahead[self._next : min(self._end, self._next + len(content))]
        content[: len(start)] = start
        self._next += len(start)
        place = len(start)
        while place < len(content):
            count = self._more(content[place:])
            if not count:
                raise self._cut(len(content) - place, len(content))
            place += count

    def _more(self, content: memoryview) -> int:
        return self._fill(content) if self._switched is None else self._switched(content)

    def _fill(self, content: memoryview) -> int:
        """Read at least one byte into it; gives how many, 0 at the end."""
        piece = self._read(len(content))
        content[: len(piece)] = piece
        return len(piece)

    def _cut(self, missing: int, size_bytes: int) -> PeerFailed:
        return PeerFailed(
            host=self.peer, reason=f"a payload ended after {size_bytes - missing} of {size_bytes} bytes"
        )


class PipeInflow(Inflow):
    """The same from a file descriptor: a pipe or a socket."""

    def __init__(self, fd: int, peer: str) -> None:
        """Read from it; a pipe is enlarged, if the kernel allows it."""
        super().__init__(lambda _count: b"", peer)
        self._fd = fd
        self._poll = select.poll()
        self._poll.register(fd, select.POLLIN)
        with suppress(OSError):  # a socket, or more than /proc/sys/fs/pipe-max-size
            fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)

    def _fill(self, content: memoryview) -> int:
        timeout = None if self.silence_s is None else self.silence_s * 1000
        if not self._poll.poll(timeout):
            raise PeerFailed(
                host=self.peer,
                reason=f"it said nothing for {self.silence_s:g} s",
                remedy="See whether the host is up, and the network between the two.",
            )
        try:
            return os.readv(self._fd, [content])
        except OSError as error:
            raise PeerFailed(host=self.peer, reason=error.strerror or str(error)) from None
