"""What the checkpoints of a store need.

Rules: F65 and F104 of images/FORMAT.md. Memory: about 330 bytes a pack, and half a KiB more for one that is
partly needed: 10 TiB on disk, 1.4 million packs, take some 500 MiB.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Final

from ckpt.codec.placement import PackRef, Placement
from ckpt.codec.v1 import ChunkedCheckpoint
from ckpt.errors import FormatUnknown, ObjectCorrupt, ObjectMissing
from ckpt.store.building import PACK_CHUNKS
from ckpt.store.objects import Objects
from ckpt.units import CheckpointId, Digest

EVERY_CHUNK: Final = (1 << PACK_CHUNKS) - 1
"""The bits of a pack of whole blobs as writers make it, of which everything is needed."""


@dataclass(slots=True)
class Needs:
    """What some checkpoints refer to: chunks of packs, as bits, and chunks of version 1."""

    packs: dict[Digest, PackRef] = field(default_factory=dict)
    chunks: dict[Digest, int] = field(default_factory=lambda: defaultdict(int))
    old_chunks: set[Digest] = field(default_factory=set)

    def add(self, placement: Placement) -> None:
        """Add what a placement refers to."""
        for ref in placement.packs:
            self.packs.setdefault(ref.name, ref)
        for file in placement.files:
            for layer in file.layers:
                for pack, chunk, count in zip(layer.packs, layer.chunks, layer.counts, strict=True):
                    self.chunks[placement.packs[pack].name] |= ((1 << count) - 1) << chunk
        for ref in placement.packs:
            if self.chunks.get(ref.name) == EVERY_CHUNK:
                self.chunks[ref.name] = EVERY_CHUNK  # of which there is one, and most packs are like it

    def needs(self, pack: Digest) -> bool:
        """Whether any chunk of the pack is needed."""
        return bool(self.chunks.get(pack))

    def chunk_count(self) -> int:
        """How many distinct chunks of packs are needed."""
        return sum(bits.bit_count() for bits in self.chunks.values())


def mark(objects: Objects, kept: set[CheckpointId], needs: Needs) -> None:
    """Add what the checkpoints need.

    Raises:
        ObjectCorrupt, ObjectMissing: what one of them needs cannot be known.
        FormatUnknown: the same.
    """
    newest = {name.checkpoint: name for name in objects.placement_names()}
    for checkpoint in sorted(kept):
        name = newest.get(checkpoint)
        try:
            if name is None:
                _mark_old(objects, checkpoint, needs)
            else:
                needs.add(objects.placement_of(checkpoint))
        except (ObjectCorrupt, ObjectMissing, FormatUnknown) as error:
            if not objects.has(checkpoint):
                continue  # removed meanwhile: it needs nothing any more
            error.remedy = (
                "Nothing was removed, because what this one needs cannot be known. "
                f"Remove it first or together with others: ckpt rm {checkpoint[:12]}"
            )
            raise


def _mark_old(objects: Objects, checkpoint: CheckpointId, needs: Needs) -> None:
    manifest = objects.read_manifest_as_written(checkpoint)
    if isinstance(manifest, ChunkedCheckpoint):
        needs.old_chunks.update(chunk.digest for file in manifest.files for chunk in file.chunks)
    else:
        objects.placement_of(checkpoint)  # it should be there: this raises what is to be told
