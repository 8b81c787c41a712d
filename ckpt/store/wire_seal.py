"""What goes from host to host beside SSH, sealed with AES-256-GCM: in place, and without the GIL.

Rule: a key seals one connection in one direction; its records are counted, and the count is the nonce.
Source: NIST SP 800-38D, section 8.2.1; https://cryptography.io/en/latest/hazmat/primitives/aead/.
"""

from __future__ import annotations

from typing import Any, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

_NONCE_BYTES: Final = 12


class WireCipher:
    """Fits ckpt.remote.records.Cipher."""

    def __init__(self, key: bytes) -> None:
        """Seal with these 32 secret bytes, which nothing else may be sealed with."""
        self._aead: Any = AESGCM(key)
        # Older versions of cryptography cannot write into a buffer.
        self._is_in_place = hasattr(AESGCM, "encrypt_into")

    def seal_into(self, number: int, plain: memoryview, associated: bytes, into: memoryview) -> None:
        """Seal `plain` into `into`, which is longer by 16 bytes; a number may seal once."""
        if self._is_in_place:
            self._aead.encrypt_into(_nonce(number), plain, associated, into)
        else:
            into[:] = self._aead.encrypt(_nonce(number), plain, associated)

    def open_into(self, number: int, sealed: memoryview, associated: bytes, into: memoryview) -> bool:
        """Open into `into`; gives whether it was sealed so, with this key. If not, what stands there means nothing."""
        try:
            if self._is_in_place:
                self._aead.decrypt_into(_nonce(number), sealed, associated, into)
            else:
                into[:] = self._aead.decrypt(_nonce(number), sealed, associated)
        except InvalidTag:
            return False
        return True


def _nonce(number: int) -> bytes:
    return number.to_bytes(_NONCE_BYTES, "big")
