"""Whether payloads are compressed: where the link is slower than the compressor, as both were measured.

Rules:
- Without a reason to compress, nothing is: a link is measured only while it is the slowest of all, since else compressing
  would gain nothing. What buffers on the way take at once says nothing of it.
- What does not shrink is sent plain; samples tell when that changes.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final, Protocol

BUFFERED_BYTES: Final = 4 << 20
"""What is taken at once by buffers on the way: the window of the channel (2 MiB), sockets, pipes."""

SHORTER: Final = 0.9
"""What compressing must leave at most."""

FASTER: Final = 2.5
"""How much faster than the link the compressor must be: both share the CPUs with the cipher."""

_SAMPLE_BYTES: Final = 128 << 10
_SAMPLED_EVERY: Final = 8
_WEIGHT: Final = 0.25
_STARVED_MAX: Final = 16


class Compressor(Protocol):
    """One that may be used by several threads."""

    def compress(self, plain: bytes | memoryview) -> bytes:
        """The bytes, compressed."""

    def decompress(self, packed: bytes | memoryview, plain_bytes: int) -> bytes:
        """The `plain_bytes` that were compressed; never allocates more.

        Raises:
            CkptError: it is not that.
        """


class LinkMeter:
    """The rate at which the link takes bytes, when it is what everybody waits for. For several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._in_a_row = 0
        self._rate: float | None = None
        self._starved = 0

    @property
    def bytes_per_s(self) -> float | None:
        """The rate; None while the link never was the slowest."""
        with self._lock:
            return self._rate

    def took(self, size_bytes: int, seconds: float, *, waited: bool) -> None:
        """The link took so many bytes in this time; `waited`: there was nothing to send before them."""
        with self._lock:
            if waited:
                self._in_a_row = 0
                self._starve()
            else:
                self._starved = 0
            if self._in_a_row >= BUFFERED_BYTES and seconds > 0:
                self._rate = _mixed(self._rate, size_bytes / seconds)
            self._in_a_row += size_bytes

    def _starve(self) -> None:
        """Forget a rate that no longer holds anybody up."""
        self._starved += 1
        if self._starved >= _STARVED_MAX:
            self._rate, self._starved = None, 0


class Shortening:
    """Decides for each payload, and compresses it. For one thread."""

    def __init__(
        self,
        compressor: Compressor,
        meter: LinkMeter,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Compress for the link that is measured; the clock counts seconds."""
        self._compressor = compressor
        self._meter = meter
        self._clock = clock
        self._rate: float | None = None
        self._left: float | None = None
        self._seen = 0

    def shorten(self, plain: memoryview) -> tuple[bytes | memoryview, bool]:
        """What to send for these bytes, and whether it is compressed."""
        link = self._meter.bytes_per_s
        if link is None or not plain:
            return plain, False
        if self._rate is None or self._left is None or not self._seen % _SAMPLED_EVERY:
            self._measure(plain[:_SAMPLE_BYTES])
        self._seen += 1
        if not self._pays(link):
            return plain, False
        packed = self._measure(plain)
        return (packed, True) if len(packed) < SHORTER * len(plain) else (plain, False)

    def _pays(self, link: float) -> bool:
        assert self._rate is not None
        assert self._left is not None
        return self._left < SHORTER and self._rate > FASTER * link

    def _measure(self, plain: memoryview) -> bytes:
        began = self._clock()
        packed = self._compressor.compress(plain)
        seconds = max(self._clock() - began, 1e-9)
        self._rate = _mixed(self._rate, len(plain) / seconds)
        self._left = _mixed(self._left, len(packed) / len(plain))
        return packed


def _mixed(before: float | None, now: float) -> float:
    return now if before is None else (1 - _WEIGHT) * before + _WEIGHT * now
