"""Which object lies under which name.

Rules: F50 to F55 of images/FORMAT.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from ckpt.codec.limits import PLACEMENT_SERIAL_MAX, TAG_SERIAL_MAX
from ckpt.codec.names import refuse_digest, refuse_label
from ckpt.units import CheckpointId, Digest, Tag

CONFIG: Final = "config"
CHUNKS: Final = "chunks"
PACKS: Final = "packs"
MANIFESTS: Final = "manifests"
PLACEMENTS: Final = "placements"
RECEIPTS: Final = "receipts"
SIGNATURES: Final = "signatures"
INDEXES: Final = "indexes"
TAGS: Final = "tags"

FOLDERS: Final = (CHUNKS, PACKS, MANIFESTS, PLACEMENTS, RECEIPTS, SIGNATURES, INDEXES, TAGS)

_SPREAD: Final = frozenset({CHUNKS, PACKS})
"""Folders of 256 folders: file systems slow down with a million names in one."""

_BY_DIGEST: Final = frozenset({CHUNKS, PACKS, MANIFESTS, RECEIPTS, INDEXES})


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class TagName:
    """What the name of a tag mark says; ordered so that the mark that counts is the last of its tag."""

    tag: Tag
    serial: int
    checkpoint: CheckpointId

    @property
    def object(self) -> str:
        """The name of the mark."""
        return f"{TAGS}/{self.tag}@{self.serial:08}@{self.checkpoint}"


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class PlacementName:
    """What the name of a placement says; ordered so that the one that counts is the last of its checkpoint."""

    checkpoint: CheckpointId
    serial: int

    @property
    def object(self) -> str:
        """The name of the placement."""
        return f"{PLACEMENTS}/{self.checkpoint}@{self.serial:08}"


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class SignatureName:
    """What the name of a signature says: whose checkpoint, and which key."""

    checkpoint: CheckpointId
    public_key: str

    @property
    def object(self) -> str:
        """The name of the signature."""
        return f"{SIGNATURES}/{self.checkpoint}@{self.public_key}"


def chunk(digest: Digest) -> str:
    """The name of a chunk of version 1."""
    return f"{CHUNKS}/{digest[:2]}/{digest}"


def pack(name: Digest) -> str:
    """The name of a pack."""
    return f"{PACKS}/{name[:2]}/{name}"


def manifest(checkpoint: CheckpointId) -> str:
    """The name of a manifest."""
    return f"{MANIFESTS}/{checkpoint}"


def receipt(checkpoint: CheckpointId) -> str:
    """The name of a receipt."""
    return f"{RECEIPTS}/{checkpoint}"


def index(digest: Digest) -> str:
    """The name of an index."""
    return f"{INDEXES}/{digest}"


def digest_in(name: str) -> Digest | None:
    """The digest that the name of an object ends in that is named by one alone; None if it is no such name."""
    folder, _, rest = name.partition("/")
    digest = Digest(rest.rpartition("/")[2])
    if folder not in _BY_DIGEST or refuse_digest(digest):
        return None
    made = f"{folder}/{digest[:2]}/{digest}" if folder in _SPREAD else f"{folder}/{digest}"
    return digest if made == name else None


def tag_in(name: str) -> TagName | None:
    """What the name of a tag mark says; None if it is none."""
    match name.removeprefix(f"{TAGS}/").split("@"):
        case [tag, serial, digest] if serial.isascii() and serial.isdigit() and not refuse_label(tag):
            found = TagName(tag=Tag(tag), serial=int(serial), checkpoint=CheckpointId(digest))
            possible = found.object == name and 0 < found.serial <= TAG_SERIAL_MAX
            return found if possible and not refuse_digest(digest) else None
        case _:
            return None


def placement_in(name: str) -> PlacementName | None:
    """What the name of a placement says; None if it is none."""
    match name.removeprefix(f"{PLACEMENTS}/").split("@"):
        case [digest, serial] if serial.isascii() and serial.isdigit() and not refuse_digest(digest):
            found = PlacementName(checkpoint=CheckpointId(digest), serial=int(serial))
            return found if found.object == name and 0 < found.serial <= PLACEMENT_SERIAL_MAX else None
        case _:
            return None


def signature_in(name: str) -> SignatureName | None:
    """What the name of a signature says; None if it is none."""
    match name.removeprefix(f"{SIGNATURES}/").split("@"):
        case [digest, key] if not refuse_digest(digest) and not refuse_digest(key):
            found = SignatureName(checkpoint=CheckpointId(digest), public_key=key)
            return found if found.object == name else None
        case _:
            return None


def is_known(name: str) -> bool:
    """Whether ckpt may have put an object of this name there."""
    return bool(digest_in(name) or tag_in(name) or placement_in(name) or signature_in(name))
