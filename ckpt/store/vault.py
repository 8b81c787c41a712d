"""What of a store is secret: nothing in a plain one, everything that is written in an encrypted one.

Rules: F76 to F79 of images/FORMAT.md. An encrypted object opens only under the name that it was sealed for; the
names that are made of contents are keyed, so that they tell nothing.
"""

from __future__ import annotations

import hashlib
import os
from typing import Final

from ckpt.codec.frame import SALT_BYTES, Kind
from ckpt.errors import ObjectCorrupt
from ckpt.store.sealing import Cipher, NotAuthentic, keyed_digest
from ckpt.units import Digest

_DOCUMENT: Final = 0
"""The number under which the body of an object is sealed that is sealed in one piece."""


class Vault:
    """The master key of an encrypted store, or none."""

    def __init__(self, master: bytes | None = None) -> None:
        self._master = master

    @property
    def is_encrypted(self) -> bool:
        """Whether objects are sealed."""
        return self._master is not None

    @property
    def master(self) -> bytes | None:
        """The key itself, to be wrapped anew."""
        return self._master

    def seal(self, kind: Kind, name: str, body: bytes) -> bytes:
        """The body as it is written under this name."""
        if self._master is None:
            return body
        salt = os.urandom(SALT_BYTES)
        return salt + self.cipher(kind, salt).seal(_DOCUMENT, body, name.encode())

    def open(self, kind: Kind, name: str, body: memoryview, *, sealed: bool) -> bytes | memoryview:
        """The body as it was before seal().

        Raises:
            ObjectCorrupt: not sealed with this key, not under this name, or changed since.
        """
        if sealed != self.is_encrypted:
            found = "it is encrypted" if sealed else "it is not encrypted"
            raise ObjectCorrupt(kind=str(kind), name=name, reason=f"{found}, as no object of this store is")
        if not sealed:
            return body
        try:
            return self.cipher(kind, bytes(body[:SALT_BYTES])).open(
                _DOCUMENT, body[SALT_BYTES:], name.encode()
            )
        except NotAuthentic:
            raise not_authentic(kind, name) from None

    def cipher(self, kind: Kind, salt: bytes) -> Cipher:
        """The cipher of the object with this salt; only for an encrypted store."""
        assert self._master is not None
        return Cipher.of_object(self._master, salt, kind.value)

    def pack_name(self, salt: bytes, listed: bytes) -> Digest:
        """The name of a pack with this salt and this list."""
        if self._master is None:
            return Digest(hashlib.sha256(salt + listed).hexdigest())
        return Digest(keyed_digest(self._master, b"pack name", salt + listed).hex())

    def mark(self, digest: bytes) -> int:
        """What an index says instead of a digest."""
        if self._master is not None:
            digest = keyed_digest(self._master, b"index mark", digest)
        return int.from_bytes(digest[:8], "big")


def not_authentic(kind: Kind, name: str) -> ObjectCorrupt:
    """The refusal of what does not open with the store's key."""
    return ObjectCorrupt(
        kind=str(kind), name=name, reason="the store's key does not open it: it was changed, or put there"
    )
