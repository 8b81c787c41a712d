"""Open a store, and make it on first use.

Rules: F50, F51 and F31 of images/FORMAT.md. A directory with other things in it never becomes a store.
"""

from __future__ import annotations

import os
import secrets
from typing import Final

from ckpt.codec.frame import Kind
from ckpt.codec.objects import CONFIG
from ckpt.codec.records import StoreConfig
from ckpt.errors import ObjectMissing, StoreUnusable
from ckpt.store import layout
from ckpt.store.backend import Backend
from ckpt.store.local import LOCK, TEMPORARY, LocalBackend, sync_new_directory
from ckpt.store.objects import Objects
from ckpt.store.refused import converted
from ckpt.store.store import Store
from ckpt.units import ByteCount, Digest

CHUNK_BYTES: Final = ByteCount(1 << 20)
"""Measured, 1 GiB of half-compressible pages to ext4 with two processors: chunks of 1 MiB 600–730 MB/s, of
256 KiB 415–470 MB/s. File-offset chunks above 16 KiB all find the same little between two dumps."""

_PRIVATE: Final = 0o700


def open_local(path: str, *, create: bool = True) -> Store:
    """The store in the directory `path`, made with mode 0700 if there is none and `create`.

    Raises:
        StoreUnusable: not a directory, one with other things in it, or not readable; or none and not `create`.
        ObjectMissing: it was a store, and its config is lost.
        FormatUnknown: of a newer format.
        ObjectCorrupt: its config is damaged.
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
    return open_store(LocalBackend(path), create=create)


def open_store(backend: Backend, *, create: bool) -> Store:
    """The store in a backend; its config is written if it has none and `create`.

    Raises:
        ObjectMissing: it has no config, and not `create`.
        FormatUnknown: of a newer format.
        ObjectCorrupt: its config is damaged.
    """
    config = _read_config(backend)
    if config is None and create:
        made = StoreConfig(id=Digest(secrets.token_hex(32)), chunk_bytes=CHUNK_BYTES)
        with backend.writing():
            # Whoever comes second finds the first one's config: creating is all or nothing.
            Objects(backend).put_plain(layout.CONFIG, Kind.CONFIG, CONFIG.encode(made))
            backend.flush()
        config = _read_config(backend)
    if config is None:
        raise _config_lost(backend.place)
    return Store(backend, config)


def _read_config(backend: Backend) -> StoreConfig | None:
    called = f"{backend.place}/{layout.CONFIG}"
    return Objects(backend).read_document(layout.CONFIG, CONFIG, called)


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
