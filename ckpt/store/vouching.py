"""Who vouches for a checkpoint, told to another host before the checkpoint itself goes there.

Rule: this only foretells: what is restored is checked with its signatures, by the host that restores it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ckpt.model.findings import Finding, Severity
from ckpt.model.needs import UNTRUSTED
from ckpt.store.publickey import TrustedKey
from ckpt.store.signing import Trust, is_valid
from ckpt.units import CheckpointId

if TYPE_CHECKING:
    from ckpt.store.store import Store

_KEY_BYTES = 32


def signers_of(store: Store, checkpoint: CheckpointId) -> tuple[str, ...] | None:
    """The public keys, in hexadecimal, that have validly signed a checkpoint; None where its store asks for none."""
    if not store.signatures_required:
        return None
    return tuple(
        signature.public_key
        for signature in store.signatures(checkpoint)
        if signature.checkpoint == checkpoint and is_valid(signature)
    )


def judge_signers(signers: tuple[str, ...] | None, trust: Trust) -> tuple[Finding, ...]:
    """A finding if this host trusts none of these keys; nothing if nobody asks for one."""
    keys = [key for text in signers or () if (key := _key(text)) is not None]
    if signers is None or {key.public for key in keys} & {key.public for key in trust.trusted()}:
        return ()
    signed = f"it is signed by the key {keys[0].fingerprint}, which this host does not trust"
    remedy = f"If you know whose key that is, there: ckpt trust add '{keys[0].key_text}'" if keys else ""
    finding = Finding(
        rule=UNTRUSTED,
        severity=Severity.BLOCKER,
        pid=None,
        name="",
        subject=keys[0].fingerprint if keys else "",
        message=signed if keys else "nobody has signed it",
        remedy=remedy or "If you know where it comes from, vouch for it: ckpt sign REF",
        option="",
    )
    return (finding,)


def _key(text: str) -> TrustedKey | None:
    try:
        public = bytes.fromhex(text)
    except ValueError:
        return None
    return TrustedKey(public=public, comment="") if len(public) == _KEY_BYTES else None
