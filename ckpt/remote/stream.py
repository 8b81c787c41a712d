"""What goes to the other side: messages and payloads, written by a thread of its own, in order.

Rules: at most QUEUE_BYTES wait. When nothing was said for ALIVE_EVERY_S, Alive is. An error of the link surfaces at the
next call.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from ckpt.codec.messages import Alive, Message, encode
from ckpt.errors import PeerFailed
from ckpt.remote.compression import LinkMeter
from ckpt.remote.inflow import SILENCE_S

ALIVE_EVERY_S: Final = SILENCE_S / 6
QUEUE_BYTES: Final = 16 << 20
"""What waits at most, one payload beside it."""

_JOINED_BYTES_MAX: Final = 64 << 10
_CLOSING_S: Final = 1.0


class BulkWriter:
    """The way to the other side. For several threads."""

    def __init__(
        self, write: Callable[[bytes | memoryview], None], peer: str, alive_every_s: float | None
    ) -> None:
        """Write with `write`, which takes all or raises.

        Args:
            write: The link.
            peer: What errors call the other side.
            alive_every_s: After how many seconds of silence to say Alive; None: never.
        """
        self.meter: Final = LinkMeter()
        self.alive_every_s = alive_every_s
        self.sent_bytes = 0
        self._write = write
        self._peer = peer
        self._changed = threading.Condition()
        self._queue: deque[tuple[bytes | memoryview, ...]] = deque()
        self._queued_bytes = 0
        self._is_writing = False
        self._is_closed = False
        self._error: PeerFailed | None = None
        self._thread = threading.Thread(target=self._run, daemon=True, name=f"to {peer}")
        self._thread.start()

    def send(self, message: Message, payload: bytes | memoryview = b"") -> None:
        """Let this be written after all before it; waits while too much waits already.

        A memoryview is copied: its buffer may be used again at once.

        Raises:
            PeerFailed: the link broke, at this or at something before it.
        """
        frame = encode(message)
        if len(frame) + len(payload) <= _JOINED_BYTES_MAX:
            parts: tuple[bytes, ...] = (frame + bytes(payload),)
        else:
            parts = (frame, bytes(payload))
        size_bytes = len(frame) + len(payload)
        with self._changed:
            self._changed.wait_for(lambda: self._is_over() or self._queued_bytes < QUEUE_BYTES)
            self._raise()
            self._queue.append(parts)
            self._queued_bytes += size_bytes
            self._changed.notify_all()

    def switch(self, write: Callable[[bytes | memoryview], None]) -> None:
        """Let all that is sent from now on be written with `write`, when all before it has been with the other one.

        Raises:
            PeerFailed: the link broke.
        """
        self.flush()
        with self._changed:
            self._raise()
            self._write = write

    def flush(self) -> None:
        """Wait until the link has taken everything.

        Raises:
            PeerFailed: it did not.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._is_over() or not (self._queue or self._is_writing))
            self._raise()

    def close(self) -> None:
        """Write nothing any more. What waits is dropped: flush() first."""
        with self._changed:
            self._is_closed = True
            self._queue.clear()
            self._changed.notify_all()
        self._thread.join(_CLOSING_S)

    def _is_over(self) -> bool:
        return self._is_closed or self._error is not None

    def _raise(self) -> None:
        if self._error is not None:
            raise PeerFailed(host=self._error.host, reason=self._error.reason, remedy=self._error.remedy)
        if self._is_closed:
            raise PeerFailed(host=self._peer, reason="the connection was closed here")

    def _run(self) -> None:
        try:
            while (taken := self._take()) is not None:
                self._write_parts(*taken)
        except PeerFailed as error:
            self._fail(error)
        except OSError as error:
            self._fail(PeerFailed(host=self._peer, reason=error.strerror or str(error)))
        finally:
            # Nobody may wait for a thread that a bug ended.
            self._fail(PeerFailed(host=self._peer, reason="nothing is sent any more"))

    def _take(self) -> tuple[tuple[bytes | memoryview, ...], bool] | None:
        """What is written next, and whether there was nothing before; None at the end."""
        with self._changed:
            self._is_writing = False
            self._changed.notify_all()
            waited = not self._queue
            has_some = self._changed.wait_for(lambda: self._is_over() or self._queue, self.alive_every_s)
            if self._is_over():
                return None
            self._is_writing = True
            if not has_some:
                return (encode(Alive()),), True
            parts = self._queue.popleft()
            self._queued_bytes -= sum(map(len, parts))
            self._changed.notify_all()
            return parts, waited

    def _write_parts(self, parts: tuple[bytes | memoryview, ...], waited: bool) -> None:  # noqa: FBT001
        began = time.perf_counter()
        for part in parts:
            self._write(part)
        size_bytes = sum(map(len, parts))
        self.meter.took(size_bytes, time.perf_counter() - began, waited=waited)
        self.sent_bytes += size_bytes

    def _fail(self, error: PeerFailed) -> None:
        with self._changed:
            self._error = self._error or error
            self._is_writing = False
            self._queue.clear()
            self._changed.notify_all()
