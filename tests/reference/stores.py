"""The reference stores of images/, and how each is opened: its JSON file says the secret and the key."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckpt.model.checkpoint import StoredFile
from ckpt.store.opening import Keys, open_local
from ckpt.store.publickey import TrustedKey
from ckpt.store.sealing import SigningKey
from ckpt.store.store import Store

IMAGES = Path(__file__).parents[2] / "images"

BASES = ("head", "sealed", "v1/head", "v2/head")

USES = ("open", "list", "restore", "write", "sweep")
"""What the damaged sets say the error of; verify has its own list."""


@dataclass(frozen=True)
class FixedTrust:
    """A host with this key, which trusts it and no other. Fits signing.Trust."""

    key: SigningKey

    def signing_key(self) -> SigningKey:
        return self.key

    def trusted(self) -> tuple[TrustedKey, ...]:
        return (TrustedKey(public=self.key.public, comment="images"),)

    def allows_unsigned(self, store: str) -> bool:
        return False

    def allow_unsigned(self, store: str, *, allowed: bool) -> None:
        raise AssertionError(store, allowed)


def expected_of(base: str) -> dict[str, Any]:
    """What reading the store must give, and what opening it needs."""
    found: dict[str, Any] = json.loads((IMAGES / f"{base}.json").read_text())
    if base == "v1/head":  # there they stand by their names alone, which mean the same in all checkpoints
        found["digests"] = {
            kept["id"]: {name: found["digests"][name] for name in _file_names(kept["checkpoint"])}
            for kept in found["checkpoints"]
        }
    return found


def _file_names(checkpoint: dict[str, Any]) -> list[str]:
    images = [file["name"] for images in checkpoint["image_sets"] for file in images["files"]]
    return images + [carried["content"]["name"] for carried in checkpoint["carried_files"]]


def keys_of(base: str) -> Keys:
    expected = expected_of(base)
    seed, secret = expected.get("signing_seed"), expected.get("secret")
    return Keys(
        secret=lambda: None if secret is None else secret.encode(),
        trust=FixedTrust(SigningKey.from_seed(bytes.fromhex(seed))) if seed else None,
    )


def opened(place: Path, base: str, *, create: bool = False) -> Store:
    """The store at `place`, a copy of this reference store."""
    return open_local(str(place), create=create, keys=keys_of(base))


def fetched(store: Store, checkpoint: Any, file: StoredFile, directory: Path) -> bytes:
    """The content of a file as a restore gets it."""
    store.fetch(checkpoint, file, str(directory / "fetched"))
    return (directory / "fetched").read_bytes()


def objects_in(place: Path) -> list[Path]:
    return sorted(path for path in place.rglob("*") if path.is_file())
