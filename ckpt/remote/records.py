"""What one side says on a connection beside SSH, in sealed records.

    STREAM = HELLO DATA* END
    RECORD = LENGTH SEALED        32 bits, big endian; SEALED is longer by TAG_BYTES than what it seals

HELLO seals the name of the protocol and the id of the migration, DATA at least one byte, END none.

Rules:
- The key came over SSH, and seals this direction of this connection alone. Records are counted, the count is their
  nonce, and LENGTH is sealed with them: one that is changed, lost, repeated or out of its place breaks the connection.
- An end without END is a break: whoever is in between cannot make it look like the end.
- Nothing is used before it was seen to be authentic, and a length is bounded before anything is read.
"""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Final, Protocol

from ckpt.errors import PeerFailed

RECORD_BYTES_MAX: Final = 1 << 20
"""What a record seals at most."""

TAG_BYTES: Final = 16

LENGTH: Final = struct.Struct(">I")
_HELLO: Final = b"ckpt direct 1\n"
_ID_BYTES: Final = 16
HELLO_BYTES: Final = LENGTH.size + len(_HELLO) + _ID_BYTES + TAG_BYTES
"""The whole record."""

_SENT_BYTES: Final = 256 << 10
"""What a record of ours seals: it is still in the CPU's cache when the kernel copies it."""

_ENDING_S: Final = 1.0


class Cipher(Protocol):
    """AES-256-GCM, or what is as good, under a key of its own."""

    def seal_into(self, number: int, plain: memoryview, associated: bytes, into: memoryview) -> None:
        """Seal `plain` into `into`, which is longer by TAG_BYTES; a number may seal once."""

    def open_into(self, number: int, sealed: memoryview, associated: bytes, into: memoryview) -> bool:
        """Open into `into`; gives whether it was sealed so, with this key. If not, what stands there means nothing."""


NewCipher = Callable[[bytes], Cipher]
"""Makes the cipher of a key."""


class RecordWriter:
    """The end that speaks. write() is for one thread, close() for any."""

    def __init__(
        self, connection: socket.socket, cipher: Cipher, migration: str, peer: str, silence_s: float
    ) -> None:
        """Take the connection over, and say hello.

        Raises:
            PeerFailed: it broke.
        """
        self._connection = connection
        self._cipher = cipher
        self._peer = peer
        self._number = 0
        self._record = memoryview(bytearray(LENGTH.size + _SENT_BYTES + TAG_BYTES))
        self._silence_s = silence_s
        self._sending = threading.Lock()
        self._is_closed = False
        connection.settimeout(silence_s)
        self.write(_hello(migration))

    def write(self, content: bytes | memoryview) -> None:
        """Send all of this.

        Raises:
            PeerFailed: the connection broke, or takes nothing.
        """
        plain = memoryview(content)
        for start in range(0, len(plain), _SENT_BYTES):
            with self._sending:
                self._send(plain[start : start + _SENT_BYTES])

    def close(self) -> None:
        """End the stream if all that was begun is sent, and close the connection."""
        if self._sending.acquire(blocking=False):
            self._connection.settimeout(_ENDING_S)
            with suppress(PeerFailed):
                self._send(memoryview(b""))
            self._is_closed = True
            self._sending.release()
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_WR)
        self._connection.close()

    def _send(self, plain: memoryview) -> None:
        if self._is_closed:
            raise PeerFailed(host=self._peer, reason="the connection was closed here")
        length = LENGTH.pack(len(plain) + TAG_BYTES)
        record = self._record[: LENGTH.size + len(plain) + TAG_BYTES]
        record[: LENGTH.size] = length
        self._cipher.seal_into(self._number, plain, length, record[LENGTH.size :])
        self._number += 1
        try:
            while record:
                record = record[self._connection.send(record) :]
        except TimeoutError:
            self._is_closed = True
            raise PeerFailed(
                host=self._peer,
                reason=f"it took nothing for {self._silence_s:g} s over the direct connection",
            ) from None
        except OSError as error:
            # Half a record may be out: nothing may follow it.
            self._is_closed = True
            raise _broken(self._peer, error) from None


class RecordReader:
    """The end that listens, behind HELLO. For one thread."""

    def __init__(self, connection: socket.socket, cipher: Cipher, peer: str, silence_s: float | None) -> None:
        """Take the connection over."""
        self._connection = connection
        self._cipher = cipher
        self._peer = peer
        self._silence_s = silence_s
        self._number = 1
        self._length = memoryview(bytearray(LENGTH.size))
        self._sealed = memoryview(bytearray(RECORD_BYTES_MAX + TAG_BYTES))
        self._plain = memoryview(bytearray(RECORD_BYTES_MAX))
        self._rest = self._plain[:0]
        self._is_over = False
        connection.settimeout(silence_s)

    def fill(self, content: memoryview) -> int:
        """Put what was said next at its beginning, at least one byte; gives how many, 0 at the end.

        Raises:
            PeerFailed: nothing came in time, or the connection broke.
        """
        if not self._rest and not self._is_over:
            record = self._next()
            size_bytes = len(record) - TAG_BYTES
            # A payload's record goes straight to where it belongs.
            if size_bytes <= len(content):
                self._open(record, content[:size_bytes])
                self._is_over = not size_bytes
                return size_bytes
            self._rest = self._plain[:size_bytes]
            self._open(record, self._rest)
        count = min(len(self._rest), len(content))
        content[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def _next(self) -> memoryview:
        """The next record, sealed."""
        self._receive(self._length)
        (size_bytes,) = LENGTH.unpack(self._length)
        if not TAG_BYTES <= size_bytes <= len(self._sealed):
            raise PeerFailed(
                host=self._peer, reason=f"a record of {size_bytes} bytes came over the direct connection"
            )
        record = self._sealed[:size_bytes]
        self._receive(record)
        return record

    def _open(self, record: memoryview, into: memoryview) -> None:
        if not self._cipher.open_into(self._number, record, bytes(self._length), into):
            raise PeerFailed(
                host=self._peer, reason="what came over the direct connection was changed on the way"
            )
        self._number += 1

    def _receive(self, into: memoryview) -> None:
        """Fill it."""
        while into:
            try:
                count = self._connection.recv_into(into)
            except TimeoutError:
                raise PeerFailed(
                    host=self._peer,
                    reason=f"it said nothing for {self._silence_s:g} s",
                    remedy="See whether the host is up, and the network between the two.",
                ) from None
            except OSError as error:
                raise _broken(self._peer, error) from None
            if not count:
                raise PeerFailed(host=self._peer, reason="the direct connection was cut")
            into = into[count:]


def is_hello(record: bytes, cipher: Cipher, migration: str) -> bool:
    """Whether these HELLO_BYTES come from the holder of the key."""
    length, sealed = record[: LENGTH.size], memoryview(record)[LENGTH.size :]
    plain = bytearray(HELLO_BYTES - LENGTH.size - TAG_BYTES)
    return cipher.open_into(0, sealed, length, memoryview(plain)) and plain == _hello(migration)


def _hello(migration: str) -> bytes:
    return _HELLO + migration.encode()


def _broken(peer: str, error: OSError) -> PeerFailed:
    reason = error.strerror or str(error)
    return PeerFailed(host=peer, reason=f"the direct connection broke: {reason}")
