"""A TCP connection beside SSH, for all that the source of a migration says: SSH costs several times the work.

Who asks for it over SSH gets a port and a key there, connects, and says so over SSH. What is answered stays with SSH.

Rules:
- The port listens where SSH came in, for one connection, and for LISTENING_S at most, or until anything else is asked.
- Who connects and does not show the key is dropped, and keeps nobody out.
- Without a connection everything goes on over SSH. One that breaks later is the way to the other host that broke.
- The kernel chooses how much it buffers; a size set by hand would end that. What is not sent yet is bounded, so that the
  rate that is measured is the link's.
Source: tcp(7); TCP_NOTSENT_LOWAT in include/uapi/linux/tcp.h.
"""

from __future__ import annotations

import os
import selectors
import socket
import time
from contextlib import suppress
from typing import Final

from ckpt.codec.migration_messages import KEY_BYTES, AskDirect, Direct, Switched, SwitchToDirect
from ckpt.errors import OsRefused, PeerFailed, Unreachable
from ckpt.remote.inflow import Inflow
from ckpt.remote.records import HELLO_BYTES, Cipher, NewCipher, RecordReader, RecordWriter, is_hello
from ckpt.remote.tcp import watch

LISTENING_S: Final = 5.0
CONNECT_TIMEOUT_S: Final = 1.5
"""How long a firewall that drops everything may hold up a migration."""

_UNSENT_BYTES: Final = 1 << 20
_GUESTS_MAX: Final = 16
_TCP_NOTSENT_LOWAT: Final = 25
_ADDRESS_WORD: Final = 2
"""Of $SSH_CONNECTION, whose words are the client's address and port, and then the server's: sshd's own."""


def begin_stream(
    connection: socket.socket, cipher: Cipher, migration: str, peer: str, silence_s: float
) -> RecordWriter:
    """What writes to the other side's port over this connection, which it takes over.

    Raises:
        Unreachable: it broke at once.
    """
    try:
        connection.setsockopt(socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, _UNSENT_BYTES)
        return RecordWriter(connection, cipher, migration, peer, silence_s)
    except (PeerFailed, OSError) as error:
        connection.close()
        reason = error.reason if isinstance(error, PeerFailed) else error.strerror
        raise Unreachable(host=peer, reason=reason or str(error)) from None


class Switching:
    """The far side: opens the port, and goes on with what comes there."""

    def __init__(self, inflow: Inflow, new_cipher: NewCipher | None, ssh_connection: str) -> None:
        """Switch this inflow.

        Args:
            inflow: What comes from the asking side.
            new_cipher: Makes ciphers; None: nothing but SSH.
            ssh_connection: $SSH_CONNECTION, or "" where that is hidden, as sudo does.
        """
        self._inflow = inflow
        self._new_cipher = new_cipher
        self._own_address = "".join(ssh_connection.split()[_ADDRESS_WORD:][:1])
        self._port: _Port | None = None
        self._reader: RecordReader | None = None

    def take(self, said: AskDirect | SwitchToDirect) -> Direct | Switched:
        """Do it, and give the answer.

        Raises:
            OsRefused: it cannot listen, or there is no connection to go on with.
        """
        match said:
            case AskDirect(migration=migration, address=address):
                return self._open(migration, self._own_address or address)
            case SwitchToDirect():
                self._switch()
                return Switched()

    def expire(self) -> None:
        """Listen no more if nobody came in time."""
        if self._port is not None and self._port.is_over:
            self.drop_port()

    def drop_port(self) -> None:
        """Listen no more."""
        if self._port is not None:
            self._port.close()
            self._port = None

    def close(self) -> None:
        """Close all of it."""
        self.drop_port()
        if self._reader is not None:
            self._reader.close()

    def _open(self, migration: str, address: str) -> Direct:
        if self._new_cipher is None or self._reader is not None:
            raise _no_connection("this agent offers none")
        self.drop_port()
        self._port = _Port(address, migration, self._new_cipher)
        return Direct(port=self._port.number, key=self._port.key)

    def _switch(self) -> None:
        port = self._port
        if port is None:
            raise _no_connection("none was asked for")
        try:
            self._reader = port.admit(self._inflow.peer, self._inflow.silence_s)
        finally:
            self.drop_port()
        self._inflow.switch(self._reader.fill)


class _Port:
    """A port that waits for the holder of a new key."""

    def __init__(self, address: str, migration: str, new_cipher: NewCipher) -> None:
        self.key: Final = os.urandom(KEY_BYTES)
        self._cipher = new_cipher(self.key)
        self._migration = migration
        self._ends = time.monotonic() + LISTENING_S
        self._listener = _listen(address)
        self.number: Final = int(self._listener.getsockname()[1])
        self._guests: dict[socket.socket, bytes] = {}

    @property
    def is_over(self) -> bool:
        return time.monotonic() >= self._ends

    def admit(self, peer: str, silence_s: float | None) -> RecordReader:
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ)
            while (left_s := self._ends - time.monotonic()) > 0:
                for key, _ in selector.select(left_s):
                    if key.fileobj is self._listener:
                        self._let_in(selector)
                    elif isinstance(key.fileobj, socket.socket) and self._proves(key.fileobj, selector):
                        del self._guests[key.fileobj]
                        watch(key.fileobj)
                        return RecordReader(key.fileobj, self._cipher, peer, silence_s)
        raise _no_connection(f"nobody who has its key came within {LISTENING_S:g} s")

    def close(self) -> None:
        for connection in (self._listener, *self._guests):
            connection.close()
        self._guests.clear()

    def _let_in(self, selector: selectors.BaseSelector) -> None:
        with suppress(OSError):
            guest, _ = self._listener.accept()
            guest.setblocking(False)
            self._guests[guest] = b""
            selector.register(guest, selectors.EVENT_READ)
        if len(self._guests) > _GUESTS_MAX:
            self._drop(next(iter(self._guests)), selector)

    def _proves(self, guest: socket.socket, selector: selectors.BaseSelector) -> bool:
        """Whether it has shown the key by now; who can no more is dropped."""
        piece = b""
        with suppress(OSError):
            piece = guest.recv(HELLO_BYTES - len(self._guests[guest]))
        self._guests[guest] += piece
        if piece and len(self._guests[guest]) < HELLO_BYTES:
            return False
        if piece and is_hello(self._guests[guest], self._cipher, self._migration):
            selector.unregister(guest)
            return True
        self._drop(guest, selector)
        return False

    def _drop(self, guest: socket.socket, selector: selectors.BaseSelector) -> None:
        del self._guests[guest]
        selector.unregister(guest)
        guest.close()


def _listen(address: str) -> socket.socket:
    """A socket that listens at a port of its own at this address."""
    listener = None
    try:
        flags = socket.AI_NUMERICHOST | socket.AI_PASSIVE
        family, kind, _, _, place = socket.getaddrinfo(address, 0, type=socket.SOCK_STREAM, flags=flags)[0]
        listener = socket.socket(family, kind)
        listener.bind(place)
        listener.listen(_GUESTS_MAX)
        listener.setblocking(False)
    except OSError as error:
        if listener is not None:
            listener.close()
        raise OsRefused(
            operation="listen at", subject=address or "no address", reason=error.strerror or str(error)
        ) from None
    return listener


def _no_connection(reason: str) -> OsRefused:
    return OsRefused(operation="take", subject="a direct connection", reason=reason)
