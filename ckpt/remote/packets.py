"""SSH packets in fewer steps than paramiko's: what a transfer of many bytes waits for.

Under AES-GCM they are built in place, with a third of the copies, and several go out at once. Those that come are read as many at once as are there:
OpenSSH says after each 96 KiB that it takes more, and each of these would cost two calls and two switches of threads.

Rule: whatever is not plain AES-GCM (before the keys are agreed on, other ciphers, zlib) is paramiko's.
Source: RFC 4253, section 6; RFC 5647, section 7; paramiko.packet.
"""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

from paramiko import Message
from paramiko.packet import Packetizer

REKEY_BYTES: Final = 32 << 30
"""After how much new keys are made, which is a pause: OpenSSH takes twice that for ciphers with blocks of 16 bytes."""

_BLOCK_BYTES: Final = 16
_PADDING_MIN: Final = 4
_PADDING_LENGTH_BYTES: Final = 1
_TAG_BYTES: Final = 16
_LENGTH: Final = struct.Struct(">I")
_FIXED_BYTES: Final = 4
"""The part of the nonce that stays; the other counts packets."""

_AHEAD_BYTES: Final = 32 << 10
_BATCH_BYTES: Final = 256 << 10
_COUNTER_MAX: Final = (1 << 64) - 1


class FastPacketizer(Packetizer):
    """paramiko's, with another way out for AES-GCM."""

    REKEY_BYTES = REKEY_BYTES

    def __init__(self, socket: Any) -> None:
        super().__init__(socket)
        self._engine: Any = None
        self._fixed = b""
        self._counter = 0
        self._counted_bytes = 0
        self._padding = b""
        self._plain = memoryview(b"")
        self._packets = memoryview(b"")
        self._filled = 0
        self._batching: int | None = None
        self._out_lock = threading.Lock()
        self._socket = socket
        self._ahead = b""
        self._may_read_ahead = False

    def set_outbound_cipher(self, *args: Any, **options: Any) -> None:
        """Encrypt with this from now on; the arguments are paramiko's."""
        super().set_outbound_cipher(*args, **options)
        engine = options["block_engine"] if options.get("aead") else None
        with self._out_lock:
            self._engine = engine if hasattr(engine, "encrypt_into") else None
            if self._engine is not None:
                nonce = options["iv_out"]
                self._fixed = nonce[:_FIXED_BYTES]
                self._counter = int.from_bytes(nonce[_FIXED_BYTES:], "big")
                # Under an authenticated cipher nothing hangs on what it is, only on that it is there.
                self._padding = os.urandom(2 * _BLOCK_BYTES)
            self._counted_bytes = 0

    def set_outbound_compressor(self, compressor: Any) -> None:
        """Compress with this: paramiko does it."""
        super().set_outbound_compressor(compressor)
        self._engine = None

    def set_inbound_cipher(self, *args: Any, **options: Any) -> None:
        """Decrypt with this from now on; the arguments are paramiko's."""
        super().set_inbound_cipher(*args, **options)
        # What paramiko read beyond the other side's first line is used up by now.
        self._may_read_ahead = True

    def read_all(self, n: int, check_rekey: bool = False) -> bytes:  # noqa: FBT001, FBT002 - paramiko's
        """The next `n` bytes of the connection."""
        if self._may_read_ahead and len(self._ahead) < n:
            # Whatever is wrong with the socket, paramiko finds out below, and says it in its own way.
            with suppress(OSError):
                self._ahead += self._socket.recv(_AHEAD_BYTES)
        found, self._ahead = self._ahead[:n], self._ahead[n:]
        if len(found) < n:
            found += super().read_all(n - len(found), check_rekey and not found)
        return found

    @contextmanager
    def batch(self) -> Iterator[None]:
        """What this thread sends in the context may be held back until there is much, or until flush()."""
        self._batching = threading.get_ident()
        try:
            yield
        finally:
            self._batching = None
            self.flush()

    def flush(self) -> None:
        """Send what was held back."""
        with self._out_lock:
            self._flush()

    def send_message(self, data: Message) -> None:
        """Send it as one packet."""
        if self._engine is None:
            super().send_message(data)
            return
        payload = data.asbytes()
        with self._out_lock:
            self._add(payload)
            if self._filled >= _BATCH_BYTES or self._batching != threading.get_ident():
                self._flush()
            self._counted_bytes += len(payload)
            if self._counted_bytes >= self.REKEY_BYTES and not self.need_rekey():
                self._trigger_rekey()  # type: ignore[attr-defined]  # the stubs lack it

    def _flush(self) -> None:
        filled, self._filled = self._filled, 0
        if filled:
            self.write_all(self._packets[:filled])

    def _add(self, payload: bytes) -> None:
        """Put the packet with this payload behind those that are held back."""
        padding = _BLOCK_BYTES - (_PADDING_LENGTH_BYTES + len(payload)) % _BLOCK_BYTES
        if padding < _PADDING_MIN:
            padding += _BLOCK_BYTES
        end = _PADDING_LENGTH_BYTES + len(payload)
        size = end + padding
        if size > len(self._plain):
            self._flush()
            self._plain = memoryview(bytearray(size))
            self._packets = memoryview(bytearray(_BATCH_BYTES + _LENGTH.size + size + _TAG_BYTES))
        plain = self._plain[:size]
        plain[0] = padding
        plain[_PADDING_LENGTH_BYTES:end] = payload
        plain[end:] = self._padding[:padding]
        packet = self._packets[self._filled : self._filled + _LENGTH.size + size + _TAG_BYTES]
        _LENGTH.pack_into(packet, 0, size)
        nonce = self._fixed + self._counter.to_bytes(8, "big")
        self._counter = (self._counter + 1) & _COUNTER_MAX
        self._engine.encrypt_into(nonce, plain, packet[: _LENGTH.size], packet[_LENGTH.size :])
        self._filled += len(packet)
