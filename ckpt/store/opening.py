"""Open a store, and make it on first use.

Rules: F31, F50, F51 and F79 of images/FORMAT.md. A directory with other things in it never becomes a store.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from ckpt.codec.frame import Kind
from ckpt.codec.objects import CONFIG
from ckpt.codec.records import StoreConfig
from ckpt.errors import ObjectMissing, StoreUnusable, WrongKey, WrongState
from ckpt.store import layout
from ckpt.store.backend import Backend
from ckpt.store.compress import from_object, to_object
from ckpt.store.local import LOCK, TEMPORARY, LocalBackend, sync_new_directory
from ckpt.store.refused import converted
from ckpt.store.sealing import NotAuthentic, new_master_key, unwrap, wrap
from ckpt.store.signing import Trust
from ckpt.store.store import Store
from ckpt.store.upgrading import encryption_of, wrapped_of
from ckpt.store.vault import Vault
from ckpt.units import Digest

_PRIVATE: Final = 0o700


@dataclass(frozen=True, slots=True, kw_only=True)
class Keys:
    """What opening a store may need: the secret of an encrypted one, and this host's keys.

    `is_named`: that the user named a secret: then what is opened must be encrypted.
    """

    secret: Callable[[], bytes | None] = lambda: None
    is_named: bool = False
    trust: Trust | None = None


NO_KEYS: Final = Keys()


def open_local(path: str, *, create: bool = True, keys: Keys = NO_KEYS) -> Store:
    """The store in the directory `path`, made with mode 0700 if there is none and `create`.

    Raises:
        StoreUnusable: not a directory, one with other things in it, or not readable; or none and not `create`.
        ObjectMissing: it was a store, and its config is lost.
        FormatUnknown: of a newer format.
        ObjectCorrupt: its config is damaged.
        WrongKey: it is encrypted, and the secret does not open it.
        NoSpace: full, so that it cannot be made.
    """
    found = _entries(path)
    if layout.CONFIG not in found:
        _refuse_what_is_there(path, found)
        if not create:
            raise StoreUnusable(
                place=path,
                reason="there is none",
                remedy="Check --store and CKPT_STORE, or make a checkpoint first.",
            )
        _make_directories(path)
    return open_store(LocalBackend(path), create=create, keys=keys)


def init_local(
    path: str, *, secret: bytes | None, signatures_required: bool, trust: Trust | None = None
) -> Store:
    """Make a store in the directory `path`, encrypted if there is a secret.

    Raises:
        WrongState: there is one.
        StoreUnusable: not a directory, one with other things in it, or not writable.
    """
    found = _entries(path)
    if layout.CONFIG in found:
        raise WrongState(
            subject=f"The store {path}", state="there already", operation="making it", needed="not to be"
        )
    _refuse_what_is_there(path, found)
    _make_directories(path)
    master = None if secret is None else new_master_key()
    encryption = None if secret is None or master is None else encryption_of(wrap(secret, master))
    config = StoreConfig(
        id=Digest(secrets.token_hex(32)), signatures_required=signatures_required, encryption=encryption
    )
    backend = LocalBackend(path)
    _write_config(backend, config)
    if trust is not None:
        trust.allow_unsigned(config.id, allowed=not signatures_required)
    return open_store(backend, create=False, keys=Keys(secret=lambda: secret, trust=trust))


def open_store(backend: Backend, *, create: bool, keys: Keys = NO_KEYS) -> Store:
    """The store in a backend; its config is written if it has none and `create`.

    Signatures are required of a store that is made with this host's keys at hand.

    Raises:
        ObjectMissing: it has no config, and not `create`.
        FormatUnknown: of a newer format.
        ObjectCorrupt: its config is damaged.
        WrongKey: it is encrypted, and the secret does not open it.
    """
    found = _read_config(backend)
    if found is None and create:
        required = keys.trust is not None
        _write_config(
            backend,
            StoreConfig(id=Digest(secrets.token_hex(32)), signatures_required=required, encryption=None),
        )
        found = _read_config(backend)
    if found is None:
        raise _config_lost(backend.place)
    version, config = found
    vault = _open_vault(backend.place, config, keys)
    return Store(backend, config, config_version=version, vault=vault, trust=keys.trust)


def _open_vault(place: str, config: StoreConfig, keys: Keys) -> Vault:
    if config.encryption is None:
        if keys.is_named:
            # Who can write to the disk could have replaced the config, to be told the next checkpoint.
            raise WrongState(
                subject=f"The store {place}",
                state="not encrypted",
                operation="a call with a key",
                needed="encrypted",
                remedy="Leave out --key-file and --key-command, and CKPT_KEY_FILE and CKPT_KEY_COMMAND; "
                "but if it was encrypted, somebody has changed its config: copy that back from a backup.",
            )
        return Vault()
    secret = keys.secret()
    if secret is None:
        raise WrongKey(
            place=place,
            reason="no key was given",
            remedy="Name it with --key-file or --key-command, or CKPT_KEY_FILE or CKPT_KEY_COMMAND.",
        )
    try:
        return Vault(unwrap(secret, wrapped_of(config.encryption)))
    except NotAuthentic:
        raise WrongKey(
            place=place,
            reason="the key that was given is not its key",
            remedy="Check --key-file or --key-command, or CKPT_KEY_FILE or CKPT_KEY_COMMAND.",
        ) from None


def _write_config(backend: Backend, config: StoreConfig) -> None:
    with backend.writing():
        # Whoever comes second finds the first one's config: creating is all or nothing.
        backend.create(layout.CONFIG, to_object(Kind.CONFIG, CONFIG.encode(config)))
        backend.flush()


def _read_config(backend: Backend) -> tuple[int, StoreConfig] | None:
    called = f"{backend.place}/{layout.CONFIG}"
    content = backend.read(layout.CONFIG, Kind.CONFIG.object_bytes_max)
    if content is None:
        return None
    version, value = CONFIG.decode_any(from_object(Kind.CONFIG, called, content), called)
    return version, value if isinstance(value, StoreConfig) else value.today()


def _entries(path: str) -> set[str]:
    with converted(path):
        try:
            return set(os.listdir(path))
        except FileNotFoundError:
            return set()


def _refuse_what_is_there(path: str, found: set[str]) -> None:
    if found & set(layout.FOLDERS):
        raise _config_lost(path)
    if found - {TEMPORARY, LOCK}:
        shown = ", ".join(sorted(found)[:3])
        raise StoreUnusable(
            place=path,
            reason=f"it is no store, and there are other things in it ({shown})",
            remedy="Name an empty directory, or one that does not exist yet.",
        )


def _config_lost(path: str) -> ObjectMissing:
    return ObjectMissing(
        place=path,
        kind="object",
        name=layout.CONFIG,
        remedy="It is a store that lost it, or none: copy config back from a backup.",
    )


def _make_directories(path: str) -> None:
    with converted(path):
        if not os.path.isdir(path):
            _make_private(path)
        temporary = f"{path}/{TEMPORARY}"
        os.makedirs(temporary, _PRIVATE, exist_ok=True)
        sync_new_directory(temporary)


def _make_private(path: str) -> None:
    """Make a directory that only its owner may enter, whatever the umask is; and those above it, as usual."""
    parent = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(parent):
        os.makedirs(parent, exist_ok=True)
    os.makedirs(path, _PRIVATE, exist_ok=True)
    sync_new_directory(path)
