"""Recipes of damaged sets: what to change in a copy of a store, and what each use must then give."""

from __future__ import annotations

import base64
import json
import zlib
from typing import Any

from reference.stores import IMAGES, USES, expected_of, keys_of, opened

from ckpt.codec.document import DocumentType
from ckpt.codec.frame import Kind
from ckpt.codec.placement import Placement, decode_placement
from ckpt.store import layout
from ckpt.store.backend import Content
from ckpt.store.compress import from_object
from ckpt.store.layout import PlacementName, SignatureName
from ckpt.store.vault import Vault
from ckpt.units import CheckpointId, Digest

Change = dict[str, Any]
Expected = dict[str, Any]

UNUSABLE = {"exit": 40, "slug": "store-unusable"}
WRONG_KEY = {"exit": 40, "slug": "wrong-key"}
MISSING = {"exit": 41, "slug": "missing"}
CORRUPT = {"exit": 42, "slug": "corrupt"}
FORMAT = {"exit": 43, "slug": "format"}
UNTRUSTED = {"exit": 44, "slug": "untrusted"}


class Base:
    """The names in a reference store that recipes speak of."""

    def __init__(self, base: str, master: bytes | None = None) -> None:
        self.base = base
        self.place = IMAGES / base
        self.vault = Vault(master)
        self.older, self.newest = (CheckpointId(kept["id"]) for kept in expected_of(base)["checkpoints"])
        self.store = opened(self.place, base)
        self.checkpoint = self.store.load(self.newest).checkpoint

    def raw(self, name: str) -> bytes:
        return (self.place / name).read_bytes()

    def plain(self, name: str, kind: Kind) -> bytes:
        return from_object(kind, name, self.raw(name), name, self.vault)

    def value(self, name: str, document: DocumentType[Any]) -> Any:
        return document.decode(self.plain(name, document.kind), name)

    def placement(self, checkpoint: CheckpointId) -> Placement:
        name = self.placement_name(checkpoint)
        return decode_placement(self.plain(name, Kind.PLACEMENT), name)

    def placement_name(self, checkpoint: CheckpointId, serial: int = 1) -> str:
        return PlacementName(checkpoint=checkpoint, serial=serial).object

    def signature_name(self, checkpoint: CheckpointId) -> str:
        trust = keys_of(self.base).trust
        assert trust is not None
        return SignatureName(checkpoint=checkpoint, public_key=trust.signing_key().public.hex()).object

    def pack_names(self) -> tuple[Digest, Digest]:
        """The pack of whole chunks that both need, and that of deltas, which the newest needs."""
        first, second = self.placement(self.newest).packs
        return first.name, second.name

    def tag_name(self, tag: str, checkpoint: CheckpointId, serial: int = 1) -> str:
        return f"{layout.TAGS}/{tag}@{serial:08}@{checkpoint}"

    def index_names(self) -> list[str]:
        return sorted(f"{layout.INDEXES}/{path.name}" for path in (self.place / layout.INDEXES).iterdir())


class Sets:
    """The sets of one file of images/damaged."""

    def __init__(self, base: Base) -> None:
        self.base = base
        self._recipes: dict[str, Any] = {}

    def add(
        self,
        name: str,
        about: str,
        changes: list[Change],
        *,
        expect: dict[str, Expected] | None = None,
        verify: list[Expected] | None = None,
        restore: str | None = None,
        cure: list[str] | None = None,
        spoils: bool = False,
    ) -> None:
        """Add a set.

        Args:
            name: What it is called.
            about: What is wrong with it, in words.
            changes: What to do to a copy of the store.
            expect: The error of each use that fails.
            verify: The problems that verify tells.
            restore: The REF that is restored: without, the newest checkpoint.
            cure: The checkpoints to remove, after which a sweep can do its work again.
            spoils: Whether what is written on top of it cannot be restored: whoever can write to a store
                without a key may spoil it, though not change what a restore gives.
        """
        assert name not in self._recipes, name
        self._recipes[name] = {
            "about": about,
            "base": self.base.base,
            "change": changes,
            "restore": restore or self.base.newest,
            "expect": {use: (expect or {}).get(use) for use in USES},
            "verify": verify or [],
            "cure": cure or [],
            "spoils": spoils,
        }

    def write(self, called: str) -> int:
        path = IMAGES / f"damaged/{called}.json"
        path.write_text(json.dumps(self._recipes, indent=1) + "\n")
        return len(self._recipes)


def delete(name: str) -> Change:
    return {"do": "delete", "object": name}


def cut(name: str, size: int) -> Change:
    return {"do": "cut", "object": name, "bytes": size}


def flip(name: str, offset: int) -> Change:
    return {"do": "flip", "object": name, "offset": offset, "bit": 3}


def swap(one: str, two: str) -> Change:
    return {"do": "swap", "object": one, "with": two}


def put(name: str, content: Content) -> Change:
    whole = content if isinstance(content, bytes) else b"".join(content)
    return {"do": "put", "object": name, "content": base64.b64encode(zlib.compress(whole, 9)).decode()}


def link(name: str, target: str) -> Change:
    return {"do": "link", "object": name, "to": target}


def make_directory(name: str) -> Change:
    return {"do": "directory", "object": name}


def told(error: Expected, subject: str, says: str) -> Expected:
    return {"slug": error["slug"], "subject": subject, "says": says}


def everywhere(error: Expected) -> dict[str, Expected]:
    return dict.fromkeys(USES, error)


def newer_frame(content: bytes) -> bytes:
    """The object as a newer ckpt might write it: version 2 of the frame, with the right check sum."""
    start = content[:12] + (2).to_bytes(2, "big") + content[14:28]
    return start + zlib.crc32(start).to_bytes(4, "big") + content[32:]
