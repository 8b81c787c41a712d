"""Streams through zstandard: archives on their way out and in, in constant memory.

Rules: one frame with a checksum. A reader never gives more than was asked for, whatever the input claims, and
knows the frame's end from the sizes of its blocks: a stream that was cut, or goes on, is refused.
Source: RFC 8878, section 3.1.1; https://python-zstandard.readthedocs.io/en/latest/decompressor.html.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator
from types import TracebackType
from typing import Any, Final, Self

import zstandard

from ckpt.errors import FormatUnknown, ObjectCorrupt

READ_BYTES: Final = 1 << 17

WINDOW_BYTES_MAX: Final = 8 << 20
"""How far back a frame may refer, and so what reading it takes: the least that RFC 8878 asks of everybody."""

# As in compress.py: on memory pages the higher levels cost more time and save nothing.
_LEVEL: Final = 1
_THREADS_MAX: Final = 4
_MAGIC: Final = bytes.fromhex("28b52ffd")
_RLE: Final = 1


class CompressedWriter:
    """Compresses what is written to it; a context manager that ends the frame when all went well."""

    def __init__(self, write: Callable[[bytes], object]) -> None:
        """Give the compressed bytes to `write`, which must take all of them."""
        threads = min(os.cpu_count() or 1, _THREADS_MAX)
        compressor = zstandard.ZstdCompressor(level=_LEVEL, threads=threads, write_checksum=True)
        sink: Any = _Sink(write)
        self._stream = compressor.stream_writer(sink, closefd=False)

    def write(self, plain: bytes) -> None:
        """Compress these bytes too."""
        self._stream.write(plain)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._stream.flush(zstandard.FLUSH_FRAME)


class CompressedReader:
    """Plain bytes from a compressed stream that nobody vouches for. Errors call it `name`."""

    def __init__(self, read: Callable[[int], bytes], name: str) -> None:
        """Take the compressed bytes from `read`, which gives at most as many as it is asked for."""
        self._name = name
        self._source = _Source(read, name)
        # zstandard asks for a file, and uses one method of it.
        source: Any = self._source
        decompressor = zstandard.ZstdDecompressor(max_window_size=WINDOW_BYTES_MAX)
        self._stream = decompressor.stream_reader(source, read_size=READ_BYTES)

    def read(self, count: int) -> bytes:
        """The next bytes: at least one and at most `count`, or none where the stream ends.

        Raises:
            FormatUnknown: it is not compressed with zstd.
            ObjectCorrupt: damaged.
        """
        try:
            return bytes(self._stream.read(count))
        except zstandard.ZstdError as error:
            raise self._damaged(f"zstd says: {error}") from None

    def end(self) -> None:
        """Return if the stream is over, whole, and nothing follows it.

        Raises:
            ObjectCorrupt: something follows, or it was cut short.
        """
        if self.read(1) or not self._source.is_over():
            raise self._damaged("more follows where it must end")
        if not self._source.is_whole:
            raise self._damaged("it ends too early")

    def _damaged(self, reason: str) -> ObjectCorrupt:
        return ObjectCorrupt(
            kind="archive", name=self._name, reason=reason, remedy="Export the checkpoint again."
        )


class _Sink:
    """What zstandard wants to write to."""

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self._write = write

    def write(self, compressed: bytes) -> int:
        """Take all of it."""
        self._write(compressed)
        return len(compressed)


class _Source:
    """What zstandard reads from: the bytes of one frame and not one behind it."""

    def __init__(self, read: Callable[[int], bytes], name: str) -> None:
        self._read = read
        self._steps = _frame(name)
        self._needed = next(self._steps)
        self._piece = bytearray()
        self._rest = False
        self.is_whole = False

    def read(self, count: int) -> bytes:
        """At most `count` bytes of the frame."""
        if self.is_whole:
            return b""
        found = self._read(count)
        used = self._follow(found)
        self._rest = used < len(found)
        return found[:used]

    def is_over(self) -> bool:
        """Whether nothing follows the frame."""
        return not self._rest and not (self.is_whole and self._read(1))

    def _follow(self, found: bytes) -> int:
        """How many of the bytes belong to the frame."""
        used = 0
        while used < len(found):
            taken = found[used : used + self._needed - len(self._piece)]
            self._piece += taken
            used += len(taken)
            if len(self._piece) == self._needed:
                try:
                    self._needed = self._steps.send(bytes(self._piece))
                except StopIteration:
                    self.is_whole = True
                    break
                self._piece.clear()
        return used


def _frame(name: str) -> Generator[int, bytes, None]:
    """Asks for the pieces of a frame: says how long the next one is, and is sent it."""
    head = yield len(_MAGIC) + 1
    if head[:-1] != _MAGIC:
        raise FormatUnknown(subject=name, reason="it is not compressed with zstd, as archives of ckpt are")
    flags = head[-1]
    is_single = flags >> 5 & 1
    yield (1 - is_single) + (0, 1, 2, 4)[flags & 3] + (is_single, 2, 4, 8)[flags >> 6]
    is_last = 0
    while not is_last:
        block = int.from_bytes((yield 3), "little")
        is_last = block & 1
        size = 1 if block >> 1 & 3 == _RLE else block >> 3
        if size:
            yield size
    if flags & 4:
        yield 4
