"""Who vouches for a checkpoint, and whether that is enough.

Rules: F98 and F99 of images/FORMAT.md. A signature is over the id, which is the digest of the manifest, which names every
byte of every file. Restoring a checkpoint is running its code as root.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from ckpt.codec.frame import Kind
from ckpt.codec.objects import SIGNATURE
from ckpt.codec.records import Signature
from ckpt.errors import CkptError, FormatUnknown, ObjectCorrupt, StoreUnusable, Untrusted
from ckpt.store import layout
from ckpt.store.backend import Backend
from ckpt.store.layout import SignatureName
from ckpt.store.objects import Objects
from ckpt.store.publickey import TrustedKey
from ckpt.store.sealing import SigningKey, is_signed_by
from ckpt.store.vault import Vault
from ckpt.units import CheckpointId, Nanoseconds

_SIGNATURES_LOOKED_AT: Final = 64


class Trust(Protocol):
    """The keys of this host: keyring.KeyRing."""

    def signing_key(self) -> SigningKey:
        """This host's key, made on first use."""

    def trusted(self) -> tuple[TrustedKey, ...]:
        """The keys whose checkpoints it restores."""

    def allows_unsigned(self, store: str) -> bool:
        """Whether the operator has said that nobody else can write to the store with this id."""

    def allow_unsigned(self, store: str, *, allowed: bool) -> None:
        """Say so, or take it back."""


class Signatures:
    """The signatures in a store."""

    def __init__(self, backend: Backend, vault: Vault, trust: Trust | None) -> None:
        self._backend = backend
        self._objects = Objects(backend, vault)
        self._trust = trust

    def signer(self, now: Callable[[], Nanoseconds]) -> Callable[[CheckpointId], Signature] | None:
        """What signs new checkpoints with this host's key; None where the store was opened without keys."""
        if self._trust is None:
            return None
        key = self._trust.signing_key()
        return lambda checkpoint: make_signature(key, checkpoint, now())

    def of(self, checkpoint: CheckpointId) -> tuple[Signature, ...]:
        """The signatures of a checkpoint that can be read."""
        found = []
        for name in self.names(checkpoint):
            try:
                signature = self.read(name)
            except (ObjectCorrupt, FormatUnknown):
                continue  # verify tells of it; the others count
            if signature is not None:
                found.append(signature)
        return tuple(found)

    def names(self, checkpoint: CheckpointId | None = None) -> list[SignatureName]:
        """The names of the signatures of a checkpoint, or of all."""
        found = (layout.signature_in(name) for name in self._backend.list(layout.SIGNATURES))
        return sorted(name for name in found if name and checkpoint in {None, name.checkpoint})

    def read(self, name: SignatureName) -> Signature | None:
        """The signature of this name; None if it is gone.

        Raises:
            ObjectCorrupt: damaged, of another checkpoint or key, or not made with the key that it names.
            FormatUnknown: written by a newer ckpt.
        """
        called = name.object.partition("/")[2]
        found = self._objects.read_document(name.object, SIGNATURE, called)
        if found is None:
            return None
        if found.checkpoint != name.checkpoint:
            raise _damaged(called, f"it was given to the checkpoint {found.checkpoint}")
        if found.public_key != name.public_key:
            raise _damaged(called, f"it names the key {found.public_key}")
        if not is_valid(found):
            raise _damaged(called, "the key that it names has not made it")
        return found

    def add(self, checkpoint: CheckpointId, now: Nanoseconds) -> Signature:
        """Sign a checkpoint with this host's key; gives the one that was there, if it was.

        Raises:
            StoreUnusable: the store was opened without keys.
        """
        if self._trust is None:
            raise StoreUnusable(place=self._backend.place, reason="it was opened without this host's keys")
        signature = make_signature(self._trust.signing_key(), checkpoint, now)
        name = SignatureName(checkpoint=checkpoint, public_key=signature.public_key)
        try:
            there = self.read(name)
        except (ObjectCorrupt, FormatUnknown):
            there = None
        if there is None:
            self.keep((signature,))
        return there or signature

    def keep(self, signatures: tuple[Signature, ...]) -> None:
        """Write signatures, also in the place of damaged ones; durable when this returns."""
        if not signatures:
            return
        with self._backend.writing():
            for signature in signatures:
                name = SignatureName(checkpoint=signature.checkpoint, public_key=signature.public_key)
                self._objects.replace_plain(name.object, Kind.SIGNATURE, SIGNATURE.encode(signature))
            self._backend.flush()

    def check(self, checkpoint: CheckpointId, *, required: bool) -> None:
        """Return if the checkpoint may be restored.

        Raises:
            Untrusted: a signature is required, and no trusted key has made one.
        """
        if required:
            check_signatures(checkpoint, self.of(checkpoint), self._trust)


def make_signature(key: SigningKey, checkpoint: CheckpointId, now: Nanoseconds) -> Signature:
    """The signature of a key over a checkpoint."""
    unsigned = Signature(checkpoint=checkpoint, public_key=key.public.hex(), signature="", signed_ns=now)
    return Signature(
        checkpoint=checkpoint,
        public_key=unsigned.public_key,
        signature=key.sign(unsigned.message).hex(),
        signed_ns=now,
    )


def is_valid(signature: Signature) -> bool:
    """Whether the key that a signature names has made it."""
    try:
        public, made = bytes.fromhex(signature.public_key), bytes.fromhex(signature.signature)
    except ValueError:
        return False
    return is_signed_by(public, signature.message, made)


def check_signatures(
    checkpoint: CheckpointId, signatures: tuple[Signature, ...], trust: Trust | None
) -> None:
    """Return if one of these signatures is of the checkpoint, valid, and of a key that is trusted.

    Raises:
        Untrusted: none is; says which command would trust the first key that signed.
    """
    trusted = {key.public for key in trust.trusted()} if trust else set()
    valid = [
        signature
        for signature in signatures[:_SIGNATURES_LOOKED_AT]
        if signature.checkpoint == checkpoint and is_valid(signature)
    ]
    if any(bytes.fromhex(signature.public_key) in trusted for signature in valid):
        return
    if not valid:
        raise Untrusted(
            checkpoint=checkpoint[:12],
            reason="nobody has signed it",
            remedy=f"If you know where it comes from, vouch for it: ckpt sign {checkpoint[:12]}",
        )
    key = TrustedKey(public=bytes.fromhex(valid[0].public_key), comment="")
    others = f" and {len(valid) - 1} other(s)" if len(valid) > 1 else ""
    raise Untrusted(
        checkpoint=checkpoint[:12],
        reason=f"it is signed by the key {key.fingerprint}{others}, which this host does not trust",
        remedy=f"If you know whose key that is: ckpt trust add '{key.key_text}'",
    )


def _damaged(called: str, reason: str) -> CkptError:
    return ObjectCorrupt(kind=str(Kind.SIGNATURE), name=called, reason=reason)
