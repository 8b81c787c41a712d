"""Documents taken apart and put together again without any check, as an attacker or a broken ckpt would."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import msgpack
from making import SEED
from recipes import Base, Change, put

from ckpt.codec.frame import Kind
from ckpt.codec.objects import SIGNATURE, checkpoint_id
from ckpt.codec.placement import Placement
from ckpt.store import layout
from ckpt.store.compress import to_object
from ckpt.store.sealing import SigningKey
from ckpt.store.signing import make_signature
from ckpt.units import CheckpointId, Nanoseconds

Document = dict[str, Any]


def document(base: Base, name: str, kind: Kind) -> Document:
    found: Document = msgpack.unpackb(base.plain(name, kind), unicode_errors="surrogateescape")
    return found


def packed(content: Document) -> bytes:
    found: bytes = msgpack.packb(content, unicode_errors="surrogateescape")
    return found


def put_document(base: Base, name: str, kind: Kind, content: Document) -> Change:
    return put(name, to_object(kind, packed(content), name, base.vault))


def put_plain(base: Base, name: str, kind: Kind, plain: bytes) -> Change:
    return put(name, to_object(kind, plain, name, base.vault))


def put_manifest(base: Base, plain: bytes) -> tuple[CheckpointId, Change]:
    found = checkpoint_id(plain)
    return found, put_plain(base, layout.manifest(found), Kind.MANIFEST, plain)


def put_signature(base: Base, checkpoint: CheckpointId, seed: bytes = SEED) -> Change:
    """A signature with the key that is trusted, so that what is behind it is looked at."""
    signature = make_signature(SigningKey.from_seed(seed), checkpoint, Nanoseconds(1))
    name = layout.SignatureName(checkpoint=checkpoint, public_key=signature.public_key).object
    return put_plain(base, name, Kind.SIGNATURE, SIGNATURE.encode(signature))


def put_placement(base: Base, placement: Placement, checkpoint: CheckpointId | None = None) -> Change:
    """The placement, under its checkpoint or another one."""
    found = dataclasses.replace(placement, checkpoint=checkpoint or placement.checkpoint)
    name = base.placement_name(found.checkpoint)
    return put_plain(base, name, Kind.PLACEMENT, found.encode())


def changed(base: Base, change: Callable[[Document], object]) -> bytes:
    """The plain bytes of the newest manifest with this change."""
    content = document(base, layout.manifest(base.newest), Kind.MANIFEST)
    made = change(content)
    return made if isinstance(made, bytes) else packed(content)
