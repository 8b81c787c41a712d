"""Payloads of messages between hosts, compressed as the store compresses its chunks: quickly."""

from __future__ import annotations

from ckpt.store.compress import compress_quickly, decompress_exactly


class WireCompressor:
    """Fits ckpt.remote.compression.Compressor. For several threads."""

    def compress(self, plain: bytes | memoryview) -> bytes:
        """The bytes, compressed."""
        return compress_quickly(plain)

    def decompress(self, packed: bytes | memoryview, plain_bytes: int) -> bytes:
        """The `plain_bytes` that were compressed; never allocates more.

        Raises:
            ObjectCorrupt: it is not that.
        """
        return decompress_exactly(packed, plain_bytes)
