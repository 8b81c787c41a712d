"""Which object lies under which name.

Rules: F50 to F55 of images/FORMAT.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from ckpt.codec.names import refuse_digest, refuse_label
from ckpt.units import CheckpointId, Digest, Tag

CONFIG: Final = "config"
CHUNKS: Final = "chunks"
MANIFESTS: Final = "manifests"
RECEIPTS: Final = "receipts"
TAGS: Final = "tags"

FOLDERS: Final = (CHUNKS, MANIFESTS, RECEIPTS, TAGS)


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


def chunk(digest: Digest) -> str:
    """The name of a chunk, in one of 256 folders: file systems slow down with a million names in one."""
    return f"{CHUNKS}/{digest[:2]}/{digest}"


def manifest(checkpoint: CheckpointId) -> str:
    """The name of a manifest."""
    return f"{MANIFESTS}/{checkpoint}"


def receipt(checkpoint: CheckpointId) -> str:
    """The name of a receipt."""
    return f"{RECEIPTS}/{checkpoint}"


def digest_in(name: str) -> Digest | None:
    """The digest that the name of a chunk, manifest or receipt ends in; None if it is none of these."""
    folder, _, rest = name.partition("/")
    digest = Digest(rest.rpartition("/")[2])
    if refuse_digest(digest):
        return None
    made = chunk(digest) if folder == CHUNKS else f"{folder}/{digest}"
    return digest if folder in {CHUNKS, MANIFESTS, RECEIPTS} and made == name else None


def tag_in(name: str) -> TagName | None:
    """What the name of a tag mark says; None if it is none."""
    match name.removeprefix(f"{TAGS}/").split("@"):
        case [tag, serial, digest] if serial.isascii() and serial.isdigit() and not refuse_label(tag):
            found = TagName(tag=Tag(tag), serial=int(serial), checkpoint=CheckpointId(digest))
            return found if found.object == name and not refuse_digest(digest) else None
        case _:
            return None
