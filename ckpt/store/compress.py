"""The door to zstandard: plain bytes to objects and back, never more bytes than were promised.

Rules: F6 and F7 of images/FORMAT.md. Contexts are kept, one a thread: making one costs as much as compressing
a small chunk. All of it releases the GIL.
Source: RFC 8878; https://python-zstandard.readthedocs.io/en/latest/decompressor.html.
"""

from __future__ import annotations

import threading
from typing import Final

import zstandard

from ckpt.codec.frame import Compression, Kind, frame, unframe
from ckpt.errors import ObjectCorrupt

# On memory pages the higher levels cost more time and save nothing (measured: level 3 slower, same ratio).
_LEVEL: Final = 1


class _Contexts(threading.local):
    """One of each for every thread."""

    def __init__(self) -> None:
        self.compressor = zstandard.ZstdCompressor(level=_LEVEL)
        self.decompressor = zstandard.ZstdDecompressor()


_contexts: Final = _Contexts()


def to_object(kind: Kind, plain: bytes) -> bytes:
    """The object with these plain bytes, compressed if that makes it shorter."""
    body = _contexts.compressor.compress(plain)
    if len(body) < len(plain):
        return frame(kind, Compression.ZSTD, len(plain), body)
    return frame(kind, Compression.NONE, len(plain), plain)


def from_object(kind: Kind, name: str, content: bytes) -> bytes:
    """The plain bytes of an object; whether they are the right ones, the caller must check.

    Raises:
        ObjectCorrupt: not what its header promises.
        FormatUnknown: written by a newer ckpt.
    """
    header, body = unframe(content, kind, name)
    if header.compression is Compression.ZSTD:
        plain = _decompress(kind, name, body, header.plain_bytes)
    else:
        plain = bytes(body)
    if len(plain) != header.plain_bytes:
        raise ObjectCorrupt(
            kind=str(kind), name=name, reason=f"{len(plain)} plain bytes where it claims {header.plain_bytes}"
        )
    return plain


def _decompress(kind: Kind, name: str, body: memoryview, plain_bytes: int) -> bytes:
    try:
        # The decompressor allocates what the zstd frame claims, whatever max_output_size says.
        claimed = zstandard.frame_content_size(body)
        if claimed != plain_bytes:
            raise ObjectCorrupt(
                kind=str(kind),
                name=name,
                reason=f"its body claims {claimed} plain bytes, its header {plain_bytes}",
            )
        return bytes(
            _contexts.decompressor.decompress(body, max_output_size=plain_bytes, allow_extra_data=False)
        )
    except zstandard.ZstdError as error:
        raise ObjectCorrupt(kind=str(kind), name=name, reason=f"zstd says: {error}") from None
