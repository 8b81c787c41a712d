"""The config replaced: a store of version 1 raised, a setting changed, the key wrapped anew.

Rules: F44, F70, F71 and F79 of images/FORMAT.md. Under the lock alone: an older ckpt that is at work holds it, and refuses the
store from then on.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from ckpt.codec.frame import Kind
from ckpt.codec.objects import CONFIG
from ckpt.codec.records import Encryption, StoreConfig
from ckpt.errors import WrongState
from ckpt.store import layout
from ckpt.store.backend import Backend
from ckpt.store.compress import to_object
from ckpt.store.sealing import WrappedKey, wrap
from ckpt.store.vault import Vault

CONFIG_VERSION: Final = CONFIG.version


def put_config(backend: Backend, config: StoreConfig) -> None:
    """Put this config in the place of the one that is there.

    Raises:
        Locked: somebody is at work in the store, and does not finish.
        StoreUnusable: not writable.
    """
    content = to_object(Kind.CONFIG, CONFIG.encode(config))
    with backend.sweeping(patient=True):
        backend.replace(layout.CONFIG, content)
        backend.flush()


def encryption_of(wrapped: WrappedKey) -> Encryption:
    """A wrapped key as the config keeps it."""
    return Encryption(
        kdf_salt=wrapped.kdf_salt.hex(),
        kdf_cost_log2=wrapped.kdf_cost_log2,
        wrapped_key=wrapped.wrapped.hex(),
    )


def wrapped_of(encryption: Encryption) -> WrappedKey:
    """A wrapped key from the config."""
    return WrappedKey(
        kdf_salt=bytes.fromhex(encryption.kdf_salt),
        kdf_cost_log2=encryption.kdf_cost_log2,
        wrapped=bytes.fromhex(encryption.wrapped_key),
    )


def rewrapped(place: str, config: StoreConfig, vault: Vault, secret: bytes) -> StoreConfig:
    """The config with the store's key wrapped for another secret.

    Raises:
        WrongState: the store is not encrypted.
    """
    master = vault.master
    if master is None:
        raise WrongState(
            subject=f"The store {place}",
            state="not encrypted",
            operation="a change of its key",
            needed="encrypted",
            remedy="A store is encrypted from its beginning: ckpt store init --encrypt.",
        )
    return replace(config, encryption=encryption_of(wrap(secret, master)))
