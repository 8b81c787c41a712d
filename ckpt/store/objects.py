"""Documents in a backend: named, framed, compressed, sealed; verified whenever they are read.

Rules: F9 to F18, F30 and F87 of images/FORMAT.md.
"""

from __future__ import annotations

from typing import Any, Final, TypeVar

from ckpt.codec.document import DocumentType
from ckpt.codec.frame import Kind
from ckpt.codec.objects import MANIFEST, checkpoint_id
from ckpt.codec.placement import Placement, decode_placement
from ckpt.errors import ObjectCorrupt, ObjectMissing
from ckpt.model.checkpoint import Checkpoint
from ckpt.store import layout
from ckpt.store.backend import Backend
from ckpt.store.compress import from_object, to_object
from ckpt.store.layout import PlacementName
from ckpt.store.packs import LOST_REMEDY
from ckpt.store.vault import Vault
from ckpt.units import ByteCount, CheckpointId

_Value = TypeVar("_Value")

_LIST_REMEDY: Final = "'ckpt list' shows what it has."


class Objects:
    """What a backend keeps beside packs, as plain bytes and values."""

    def __init__(self, backend: Backend, vault: Vault) -> None:
        self._backend = backend
        self._vault = vault

    def put_plain(self, name: str, kind: Kind, plain: bytes) -> ByteCount | None:
        """Keep an object's plain bytes, and give the space that they take; None if one of this name was there.

        Raises:
            NoSpace: full; nothing of the object remains.
        """
        return self._backend.create(name, to_object(kind, plain, name, self._vault))

    def replace_plain(self, name: str, kind: Kind, plain: bytes) -> ByteCount:
        """Keep an object's plain bytes, whatever is there under this name; raises what put_plain() does."""
        return self._backend.replace(name, to_object(kind, plain, name, self._vault))

    def read_plain(self, name: str, kind: Kind, called: str) -> bytes | None:
        """The plain bytes of an object that the errors call `called`; None if there is none."""
        content = self._backend.read(name, kind.object_bytes_max)
        return None if content is None else from_object(kind, called, content, name, self._vault)

    def read_document(self, name: str, document: DocumentType[_Value], called: str) -> _Value | None:
        """The document of this name, which the errors call `called`; None if there is none."""
        plain = self.read_plain(name, document.kind, called)
        return None if plain is None else document.decode(plain, called)

    def read_manifest(self, checkpoint: CheckpointId) -> Checkpoint:
        """The checkpoint of this id.

        Raises:
            ObjectMissing: the store has none.
            ObjectCorrupt: damaged.
            FormatUnknown: written by a newer ckpt.
        """
        return MANIFEST.decode(self.manifest_bytes(checkpoint), checkpoint)

    def read_manifest_as_written(self, checkpoint: CheckpointId) -> Any:
        """The same, as the version describes it in which it is written: a Checkpoint, or one of codec/v1.py or v2.py."""
        return MANIFEST.decode_any(self.manifest_bytes(checkpoint), checkpoint)[1]

    def has(self, checkpoint: CheckpointId) -> bool:
        """Whether there is a checkpoint of this id, readable or not."""
        return self._backend.stat(layout.manifest(checkpoint)) is not None

    def manifest_bytes(self, checkpoint: CheckpointId) -> bytes:
        """The manifest's plain bytes, whose digest is the id.

        Raises:
            ObjectMissing: the store has none.
            ObjectCorrupt: damaged.
        """
        plain = self.read_plain(layout.manifest(checkpoint), Kind.MANIFEST, checkpoint)
        if plain is None:
            raise ObjectMissing(
                place=self._backend.place, kind="checkpoint", name=checkpoint, remedy=_LIST_REMEDY
            )
        if (found := checkpoint_id(plain)) != checkpoint:
            raise ObjectCorrupt(
                kind=str(Kind.MANIFEST), name=checkpoint, reason=f"the digest of its content is {found}"
            )
        return plain

    def placement_names(self) -> list[PlacementName]:
        """All placements, those of a checkpoint together and the one that counts last."""
        names = self._backend.list(layout.PLACEMENTS)
        return sorted(found for name in names if (found := layout.placement_in(name)))

    def newest_placement(self, checkpoint: CheckpointId) -> PlacementName | None:
        """The placement of this checkpoint that counts; None if there is none."""
        return max((name for name in self.placement_names() if name.checkpoint == checkpoint), default=None)

    def read_placement(self, name: PlacementName) -> Placement | None:
        """The placement of this name; None if it is gone.

        Raises:
            ObjectCorrupt: damaged, or of another checkpoint.
            FormatUnknown: written by a newer ckpt.
        """
        called = name.object.partition("/")[2]
        plain = self.read_plain(name.object, Kind.PLACEMENT, called)
        if plain is None:
            return None
        found = decode_placement(plain, called)
        if found.checkpoint != name.checkpoint:
            raise ObjectCorrupt(
                kind=str(Kind.PLACEMENT), name=called, reason=f"it belongs to {found.checkpoint}"
            )
        return found

    def placement_of(self, checkpoint: CheckpointId) -> Placement:
        """The placement of this checkpoint that counts.

        Raises:
            ObjectMissing: there is none.
            ObjectCorrupt: damaged.
            FormatUnknown: written by a newer ckpt.
        """
        name = self.newest_placement(checkpoint)
        found = self.read_placement(name) if name else None
        if found is None and name is not None:
            # Replaced by a newer one since the names were listed.
            name = self.newest_placement(checkpoint)
            found = self.read_placement(name) if name else None
        if found is None:
            raise ObjectMissing(
                place=self._backend.place, kind="placement", name=checkpoint, remedy=LOST_REMEDY
            )
        return found
