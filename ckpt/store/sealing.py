"""The door to cryptography: signatures, sealed objects, keyed digests, and the wrapping of a store's master key.

Rules: one key never serves two purposes: each is derived from the master key with HKDF-SHA256, its `info` being
"ckpt aead" or "ckpt hmac", a zero byte, and the purpose. An object has a key of its own, from a salt of its own,
so that nonces may be counted: a number is used once in an object, and no random nonce can ever repeat. The
calls on big data release the GIL.
Source: RFC 8032 (Ed25519), RFC 5869 (HKDF), RFC 2104 (HMAC), RFC 7914 (scrypt), NIST SP 800-38D (GCM);
https://cryptography.io/en/latest/hazmat/primitives/aead/.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, TypeAlias

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

KEY_BYTES: Final = 32
"""The length of the master key, of every derived key, and of a signing key's seed and public half."""

SIGNATURE_BYTES: Final = 64
TAG_BYTES: Final = 16
"""By how much what is sealed is longer."""

SALT_BYTES: Final = 32
KDF_COST_LOG2: Final = 15
"""scrypt's N as a power of two: 32 MiB and some 100 ms."""
KDF_COST_LOG2_MIN: Final = 10
# The memory that it takes is 1 KiB × N: a config that somebody else wrote may ask for 1 GiB, and no more.
KDF_COST_LOG2_MAX: Final = 20

Buffer: TypeAlias = bytes | bytearray | memoryview

_KDF_BLOCK_SIZE: Final = 8
_KDF_PARALLEL: Final = 1
_NONCE_BYTES: Final = 12
_HMAC_BLOCK_BYTES: Final = 64
_WRAPPING: Final = b"ckpt master key"


class NotAuthentic(Exception):
    """Not sealed with this key, or not these bytes any more; the caller says of what."""


class SigningKey:
    """An Ed25519 key that signs."""

    __slots__ = ("_private", "public", "seed")

    def __init__(self, seed: bytes) -> None:
        self._private = Ed25519PrivateKey.from_private_bytes(seed)
        self.seed: Final = seed
        self.public: Final = self._private.public_key().public_bytes_raw()

    @classmethod
    def generate(cls) -> SigningKey:
        """A new one, from the kernel's random numbers."""
        return cls(os.urandom(KEY_BYTES))

    @classmethod
    def from_seed(cls, seed: bytes) -> SigningKey:
        """The one with these 32 secret bytes."""
        return cls(seed)

    def sign(self, message: bytes) -> bytes:
        """The signature of the message: 64 bytes, the same each time."""
        return self._private.sign(message)


def is_signed_by(public: bytes, message: bytes, signature: bytes) -> bool:
    """Whether the holder of this public key signed this message; no bytes are too odd to be asked about."""
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


class Cipher:
    """AES-256-GCM with the key of one object; may be used by several threads."""

    __slots__ = ("_aead",)

    def __init__(self, key: bytes) -> None:
        self._aead = AESGCM(key)

    @classmethod
    def of_object(cls, master: bytes, salt: bytes, purpose: bytes) -> Cipher:
        """The cipher of the object that has this salt, which no other object of the purpose may have."""
        return cls(_derived(master, salt, b"ckpt aead\0" + purpose))

    def seal(self, number: int, plain: Buffer, associated: bytes) -> bytes:
        """The sealed bytes, longer by TAG_BYTES; they open only with the same number and associated bytes.

        A number may seal once in the life of the object: twice would give both plain texts away.
        """
        return self._aead.encrypt(_nonce(number), plain, associated)

    def open(self, number: int, sealed: Buffer, associated: bytes) -> bytes:
        """The plain bytes.

        Raises:
            NotAuthentic: another key, number or associated bytes, or changed since.
        """
        try:
            return self._aead.decrypt(_nonce(number), sealed, associated)
        except InvalidTag:
            raise NotAuthentic from None


def keyed_digest(master: bytes, purpose: bytes, data: Buffer) -> bytes:
    """HMAC-SHA256 of the data: 32 bytes that tell nothing about it to who lacks the master key."""
    inner, outer = _hmac_states(master, purpose)
    digest = inner.copy()
    digest.update(data)
    result = outer.copy()
    result.update(digest.digest())
    return result.digest()


@dataclass(frozen=True, slots=True, kw_only=True)
class WrappedKey:
    """A master key as a store's config has it: to be opened with a secret, through scrypt (r=8, p=1)."""

    kdf_salt: bytes
    kdf_cost_log2: int
    wrapped: bytes

    def __post_init__(self) -> None:
        if len(self.kdf_salt) != SALT_BYTES:
            raise ValueError(f"a salt of {len(self.kdf_salt)} bytes")
        if not KDF_COST_LOG2_MIN <= self.kdf_cost_log2 <= KDF_COST_LOG2_MAX:
            raise ValueError(f"a cost of 2**{self.kdf_cost_log2}")
        if len(self.wrapped) != KEY_BYTES + TAG_BYTES:
            raise ValueError(f"a wrapped key of {len(self.wrapped)} bytes")


def new_master_key() -> bytes:
    """A master key, from the kernel's random numbers."""
    return os.urandom(KEY_BYTES)


def wrap(secret: bytes, master: bytes, *, kdf_cost_log2: int = KDF_COST_LOG2) -> WrappedKey:
    """The master key, sealed so that this secret opens it."""
    if len(master) != KEY_BYTES:
        raise ValueError(f"a master key of {len(master)} bytes")
    salt = os.urandom(SALT_BYTES)
    wrapped = _wrapping_cipher(secret, salt, kdf_cost_log2).seal(0, master, _WRAPPING)
    return WrappedKey(kdf_salt=salt, kdf_cost_log2=kdf_cost_log2, wrapped=wrapped)


def unwrap(secret: bytes, wrapped: WrappedKey) -> bytes:
    """The master key.

    Raises:
        NotAuthentic: this secret does not open it.
    """
    cipher = _wrapping_cipher(secret, wrapped.kdf_salt, wrapped.kdf_cost_log2)
    return cipher.open(0, wrapped.wrapped, _WRAPPING)


def _wrapping_cipher(secret: bytes, salt: bytes, cost_log2: int) -> Cipher:
    # The salt is a new one each time, so the key is, too, and the number 0 is used once.
    kdf = Scrypt(salt=salt, length=KEY_BYTES, n=1 << cost_log2, r=_KDF_BLOCK_SIZE, p=_KDF_PARALLEL)
    return Cipher(kdf.derive(secret))


def _nonce(number: int) -> bytes:
    return number.to_bytes(_NONCE_BYTES, "big")


def _derived(master: bytes, salt: bytes | None, info: bytes) -> bytes:
    return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=salt, info=info).derive(master)


@lru_cache(maxsize=64)
def _hmac_states(master: bytes, purpose: bytes) -> tuple[hashlib._Hash, hashlib._Hash]:
    # RFC 2104 in its own words, with both keyed states kept: on 4 KiB a third faster than hmac.digest(), which
    # moreover holds the GIL, so that two threads digest no more than one (measured).
    key = _derived(master, None, b"ckpt hmac\0" + purpose).ljust(_HMAC_BLOCK_BYTES, b"\0")
    inner = hashlib.sha256(bytes(byte ^ 0x36 for byte in key))
    outer = hashlib.sha256(bytes(byte ^ 0x5C for byte in key))
    return inner, outer
