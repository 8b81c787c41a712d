"""Signatures, seals and keyed digests: known answers, and what must not open."""

from __future__ import annotations

import hmac
import threading
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from ckpt.store import sealing
from ckpt.store.sealing import (
    TAG_BYTES,
    Cipher,
    NotAuthentic,
    SigningKey,
    WrappedKey,
    is_signed_by,
    keyed_digest,
    unwrap,
    wrap,
)

MASTER = bytes(range(32))
CHEAP = sealing.KDF_COST_LOG2_MIN


def cipher(*, master: bytes = MASTER, salt: bytes = b"s" * 32, purpose: bytes = b"pack") -> Cipher:
    return Cipher.of_object(master, salt, purpose)


@pytest.mark.parametrize(
    ("seed", "public", "message", "signature"),
    [
        (
            "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
            "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
            "",
            (
                "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e06522490155"
                "5fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b"
            ),
        ),
        (
            "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
            "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
            "af82",
            (
                "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac"
                "18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a"
            ),
        ),
    ],
)
def test_signatures_are_those_of_rfc_8032(seed: str, public: str, message: str, signature: str) -> None:
    key = SigningKey.from_seed(bytes.fromhex(seed))
    assert (key.seed.hex(), key.public.hex()) == (seed, public)
    assert key.sign(bytes.fromhex(message)).hex() == signature
    assert is_signed_by(key.public, bytes.fromhex(message), bytes.fromhex(signature))


def test_every_generated_key_is_another() -> None:
    assert SigningKey.generate().seed != SigningKey.generate().seed


def test_a_signature_holds_for_its_message_and_key_alone() -> None:
    key, other = SigningKey.generate(), SigningKey.generate()
    signature = key.sign(b"message")
    assert is_signed_by(key.public, b"message", signature)
    assert not is_signed_by(other.public, b"message", signature)
    assert not is_signed_by(key.public, b"massage", signature)
    for bit in range(0, 512, 7):
        changed = bytearray(signature)
        changed[bit // 8] ^= 1 << bit % 8
        assert not is_signed_by(key.public, b"message", bytes(changed))


@pytest.mark.parametrize("length", [0, 1, 31, 33, 64])
def test_a_key_or_signature_of_an_odd_length_is_no_signature(length: int) -> None:
    key = SigningKey.generate()
    assert not is_signed_by(bytes(length), b"message", key.sign(b"message"))
    assert not is_signed_by(key.public, b"message", bytes(length))


def test_the_cipher_is_gcm_as_its_authors_tested_it() -> None:
    # Test case 14 of "The Galois/Counter Mode of Operation": key, nonce and plain text of zeros.
    sealed = Cipher(bytes(32)).seal(0, bytes(16), b"")
    assert sealed.hex() == "cea7403d4d606b6e074ec5d3baf39d18" + "d0d1c8a799996bf0265b98b5d48ab919"


def test_an_objects_key_is_hkdf_of_master_and_salt() -> None:
    key = HKDF(algorithm=SHA256(), length=32, salt=b"s" * 32, info=b"ckpt aead\0pack").derive(MASTER)
    assert cipher().seal(7, b"plain", b"with") == Cipher(key).seal(7, b"plain", b"with")


def test_the_key_derivation_is_that_of_rfc_5869() -> None:
    # Its test case 1, to 32 of the 42 bytes: HKDF-Expand gives the same beginning whatever the length.
    derived = sealing._derived(
        bytes.fromhex("0b" * 22),
        bytes.fromhex("000102030405060708090a0b0c"),
        bytes.fromhex("f0f1f2f3f4f5f6f7f8f9"),
    )
    assert derived.hex() == "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf"


@pytest.mark.parametrize("plain", [b"", b"x", b"page" * 1024])
def test_what_was_sealed_opens(plain: bytes) -> None:
    sealed = cipher().seal(1, memoryview(plain), b"name")
    assert len(sealed) == len(plain) + TAG_BYTES
    assert cipher().open(1, memoryview(sealed), b"name") == plain


def test_nothing_opens_with_another_number_name_key_salt_or_purpose() -> None:
    sealed = cipher().seal(1, b"plain", b"name")
    for other, number, associated in [
        (cipher(), 2, b"name"),
        (cipher(), 1, b"named"),
        (cipher(master=bytes(32)), 1, b"name"),
        (cipher(salt=b"t" * 32), 1, b"name"),
        (cipher(purpose=b"index"), 1, b"name"),
    ]:
        with pytest.raises(NotAuthentic):
            other.open(number, sealed, associated)


def test_no_bit_of_a_sealed_object_can_be_changed() -> None:
    sealed = cipher().seal(1, b"plain", b"name")
    for bit in range(8 * len(sealed)):
        changed = bytearray(sealed)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(NotAuthentic):
            cipher().open(1, changed, b"name")


@pytest.mark.parametrize("length", range(TAG_BYTES + 1))
def test_what_is_too_short_to_be_sealed_does_not_open(length: int) -> None:
    with pytest.raises(NotAuthentic):
        cipher().open(1, bytes(length), b"name")


def test_threads_may_share_a_cipher() -> None:
    shared, opened = cipher(), [0, 0]

    def work(which: int) -> None:
        for number in range(which, 400, 2):
            plain = number.to_bytes(2, "big") * 5000
            opened[which] += shared.open(number, shared.seal(number, plain, b""), b"") == plain

    threads = [threading.Thread(target=work, args=(which,)) for which in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert opened == [200, 200]


@pytest.mark.parametrize("data", [b"", b"x", b"page" * 1024, memoryview(b"0123456789")[3:]])
def test_a_keyed_digest_is_hmac_with_a_key_for_its_purpose(data: bytes) -> None:
    key = HKDF(algorithm=SHA256(), length=32, salt=None, info=b"ckpt hmac\0chunk").derive(MASTER)
    assert keyed_digest(MASTER, b"chunk", data) == hmac.digest(key, data, "sha256")


def test_a_keyed_digest_depends_on_key_purpose_and_data() -> None:
    digests = {
        keyed_digest(MASTER, b"chunk", b"data"),
        keyed_digest(bytes(32), b"chunk", b"data"),
        keyed_digest(MASTER, b"name", b"data"),
        keyed_digest(MASTER, b"chunk", b"date"),
    }
    assert len(digests) == 4
    assert keyed_digest(MASTER, b"chunk", b"data") in digests


def test_a_wrapped_key_is_unwrapped_by_its_secret_alone() -> None:
    wrapped = wrap(b"secret", MASTER, kdf_cost_log2=CHEAP)
    assert unwrap(b"secret", wrapped) == MASTER
    for secret in (b"", b"Secret", b"secret\n"):
        with pytest.raises(NotAuthentic):
            unwrap(secret, wrapped)


def test_wrapping_twice_shows_nothing_in_common() -> None:
    first, second = (wrap(b"secret", MASTER, kdf_cost_log2=CHEAP) for _ in range(2))
    assert first.kdf_salt != second.kdf_salt
    assert first.wrapped != second.wrapped


def test_a_new_store_has_the_usual_cost() -> None:
    assert wrap(b"secret", MASTER).kdf_cost_log2 == 15


def test_a_wrapped_key_with_anything_changed_does_not_open() -> None:
    wrapped = wrap(b"secret", MASTER, kdf_cost_log2=CHEAP)
    for changed in (
        replace(wrapped, kdf_cost_log2=CHEAP + 1),
        replace(wrapped, kdf_salt=bytes(32)),
        replace(wrapped, wrapped=bytes(48)),
    ):
        with pytest.raises(NotAuthentic):
            unwrap(b"secret", changed)


@pytest.mark.parametrize(
    ("salt", "cost", "wrapped", "refused"),
    [
        (32, 9, 48, "cost"),
        (32, 21, 48, "cost"),
        (32, 63, 48, "cost"),
        (31, 15, 48, "salt of 31"),
        (32, 15, 47, "key of 47"),
    ],
)
def test_a_config_cannot_ask_for_more_than_is_sane(salt: int, cost: int, wrapped: int, refused: str) -> None:
    with pytest.raises(ValueError, match=refused):
        WrappedKey(kdf_salt=bytes(salt), kdf_cost_log2=cost, wrapped=bytes(wrapped))


def test_a_master_key_has_its_length() -> None:
    assert len(sealing.new_master_key()) == 32
    with pytest.raises(ValueError, match="31"):
        wrap(b"secret", bytes(31), kdf_cost_log2=CHEAP)
