"""When payloads are compressed: where that was measured to be faster."""

from __future__ import annotations

import os
import zlib

import pytest

from ckpt.remote.compression import BUFFERED_BYTES, LinkMeter, Shortening

PAYLOAD_BYTES = 4 << 20
TEXT = memoryview(b"the same again " * (PAYLOAD_BYTES // 15 + 1))[:PAYLOAD_BYTES]
NOISE = memoryview(os.urandom(PAYLOAD_BYTES))


class Bench:
    """A compressor and a link whose speeds are set, and a clock that they move."""

    def __init__(self, compressor: float, link: float) -> None:
        self.now = 0.0
        self.link = link
        self.meter = LinkMeter()
        self.compressed = 0
        self._compressor = compressor
        self._shortening = Shortening(self, self.meter, lambda: self.now)

    def compress(self, plain: bytes | memoryview) -> bytes:
        self.now += len(plain) / self._compressor
        self.compressed += len(plain)
        return zlib.compress(plain, 1)

    def decompress(self, packed: bytes | memoryview, plain_bytes: int) -> bytes:
        raise AssertionError

    def send(self, plain: memoryview, *, waited: bool = False) -> bool:
        """Whether it went compressed."""
        packed, is_compressed = self._shortening.shorten(plain)
        self.meter.took(len(packed), len(packed) / self.link, waited=waited)
        return is_compressed

    def send_many(self, plain: memoryview, *, waited: bool = False) -> bool:
        """Whether the last of many went compressed."""
        return [self.send(plain, waited=waited) for _ in range(40)][-1]


def test_a_slow_link_gets_what_shrinks_compressed_and_the_rest_plain() -> None:
    bench = Bench(compressor=300e6, link=12e6)
    assert bench.send_many(TEXT)
    assert not bench.send_many(NOISE)
    # It is only looked at now and then.
    before = bench.compressed
    bench.send_many(NOISE)
    assert bench.compressed - before < PAYLOAD_BYTES
    assert bench.send_many(TEXT)


def test_a_fast_link_gets_all_plain() -> None:
    bench = Bench(compressor=300e6, link=1000e6)
    assert not bench.send_many(TEXT)


def test_a_link_that_nobody_waits_for_is_not_measured_and_gets_all_plain() -> None:
    bench = Bench(compressor=300e6, link=12e6)
    assert not bench.send_many(TEXT, waited=True)
    assert bench.meter.bytes_per_s is None
    assert bench.compressed == 0


def test_what_buffers_take_at_once_is_not_the_link() -> None:
    meter = LinkMeter()
    meter.took(BUFFERED_BYTES, 0.001, waited=True)
    assert meter.bytes_per_s is None
    meter.took(1 << 20, 0.5, waited=False)
    assert meter.bytes_per_s == pytest.approx(2 << 20)


def test_a_link_that_became_fast_gets_all_plain_again() -> None:
    bench = Bench(compressor=300e6, link=12e6)
    assert bench.send_many(TEXT)
    bench.link = 2000e6
    assert not bench.send_many(TEXT, waited=True)
