"""Keys of hosts, without files."""

from __future__ import annotations

from ckpt.store.publickey import TrustedKey
from ckpt.store.sealing import SigningKey


class OwnKey:
    """A host that has a key, the same for the same number, and trusts it and whom it is told. Fits signing.Trust."""

    def __init__(self, number: int = 1, *others: OwnKey) -> None:
        self._key = SigningKey.from_seed(number.to_bytes(32, "big"))
        self._others = others
        self._unsigned: set[str] = set()

    def signing_key(self) -> SigningKey:
        return self._key

    def trusted(self) -> tuple[TrustedKey, ...]:
        return tuple(TrustedKey(public=key.signing_key().public, comment="") for key in (self, *self._others))

    def allows_unsigned(self, store: str) -> bool:
        return store in self._unsigned

    def allow_unsigned(self, store: str, *, allowed: bool) -> None:
        self._unsigned.add(store)
        if not allowed:
            self._unsigned.remove(store)
