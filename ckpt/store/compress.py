"""The door to zstandard: plain bytes to objects and blobs and back, never more bytes than were promised.

Rules: F6, F7 and F83 of images/FORMAT.md. Contexts are kept, one a thread: making one costs as much as
compressing a small chunk. All of it releases the GIL.
Source: RFC 8878; https://python-zstandard.readthedocs.io/en/latest/decompressor.html.
"""

from __future__ import annotations

import itertools
import threading
from typing import Final

import zstandard

from ckpt.codec.frame import Compression, Kind, frame, unframe
from ckpt.codec.pack import BlobEntry, BlobKind
from ckpt.errors import ObjectCorrupt
from ckpt.store.vault import Vault
from ckpt.units import CHUNK_BYTES

_QUICK_LEVEL: Final = 1
_STRONG_LEVEL: Final = 3
_TRIED_EVERY: Final = 64
_GAIN_MIN: Final = 0.08
"""Measured: a redis dump takes 15 % less at level 3 and 1.8 times the time; numbers and noise gain nothing."""

# Documents are small, and the columns of a placement gain a third.
_DOCUMENT_LEVEL: Final = 6

_PLAIN: Final = Vault()


class _Contexts(threading.local):
    """One of each for every thread. Blobs have zstd's check sum: a writer compares with them without hashing."""

    def __init__(self) -> None:
        self.quick_compressor = zstandard.ZstdCompressor(level=_QUICK_LEVEL, write_checksum=True)
        self.strong_compressor = zstandard.ZstdCompressor(level=_STRONG_LEVEL, write_checksum=True)
        self.document_compressor = zstandard.ZstdCompressor(level=_DOCUMENT_LEVEL)
        self.decompressor = zstandard.ZstdDecompressor()


_contexts: Final = _Contexts()


def to_object(kind: Kind, plain: bytes, name: str = "", vault: Vault = _PLAIN) -> bytes:
    """The object with these plain bytes, compressed if that makes it shorter, and sealed for this name."""
    body, compression = _contexts.document_compressor.compress(plain), Compression.ZSTD
    if len(body) >= len(plain):
        body, compression = plain, Compression.NONE
    body = vault.seal(kind, name, body)
    return frame(kind, compression, len(plain), body, sealed=vault.is_encrypted)


def from_object(kind: Kind, called: str, content: bytes, name: str = "", vault: Vault = _PLAIN) -> bytes:
    """The plain bytes of an object; whether they are the right ones, the caller must check.

    Raises:
        ObjectCorrupt: not what its header promises, or not sealed for this name.
        FormatUnknown: written by a newer ckpt.
    """
    header, framed = unframe(content, kind, called)
    body = vault.open(kind, name, framed, sealed=header.sealed)
    if header.compression is Compression.ZSTD:
        plain = _decompress(kind, called, body, header.plain_bytes)
    else:
        plain = bytes(body)
    if len(plain) != header.plain_bytes:
        raise ObjectCorrupt(
            kind=str(kind),
            name=called,
            reason=f"{len(plain)} plain bytes where it claims {header.plain_bytes}",
        )
    return plain


class BlobCompressor:
    """Compresses blobs, with more effort where that pays: every 64th is tried both ways. For several threads."""

    def __init__(self) -> None:
        self._seen = itertools.count()
        self._is_strong = False

    def compress(self, kind: BlobKind, plain: bytes) -> tuple[Compression, bytes]:
        """The chunks of a blob, compressed also where that makes them no shorter: zstd's check sum is wanted."""
        if kind is BlobKind.DELTA:
            return Compression.ZSTD, bytes(_contexts.quick_compressor.compress(plain))
        return Compression.ZSTD, self._whole(plain)

    def _whole(self, plain: bytes) -> bytes:
        if next(self._seen) % _TRIED_EVERY:
            chosen = _contexts.strong_compressor if self._is_strong else _contexts.quick_compressor
            return bytes(chosen.compress(plain))
        quick = bytes(_contexts.quick_compressor.compress(plain))
        strong = bytes(_contexts.strong_compressor.compress(plain))
        self._is_strong = len(strong) < (1 - _GAIN_MIN) * len(quick)
        return min(quick, strong, key=len)


def from_blob(entry: BlobEntry, stored: bytes, called: str) -> bytes:
    """The plain bytes of a blob, as many as its entry says.

    Raises:
        ObjectCorrupt: not what the entry promises.
    """
    plain_bytes = entry.chunks * CHUNK_BYTES
    if entry.compression is Compression.ZSTD:
        return _decompress(Kind.PACK, called, stored, plain_bytes)
    if len(stored) != plain_bytes:
        raise ObjectCorrupt(
            kind=str(Kind.PACK),
            name=called,
            reason=f"a blob of {len(stored)} plain bytes where its list promises {plain_bytes}",
        )
    return stored


def compress_quickly(plain: bytes | memoryview) -> bytes:
    """The bytes, compressed with the least effort."""
    return bytes(_contexts.quick_compressor.compress(plain))


def decompress_exactly(packed: bytes | memoryview, plain_bytes: int) -> bytes:
    """What compress_quickly() was given, of which nothing but its length is known.

    Raises:
        ObjectCorrupt: it is not that.
    """
    return _decompress(Kind.CHUNK, "of a message", packed, plain_bytes)


def _decompress(kind: Kind, name: str, body: bytes | memoryview, plain_bytes: int) -> bytes:
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
