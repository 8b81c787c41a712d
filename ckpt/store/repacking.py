"""Packs of which little is still needed, written anew without the rest.

Rules: F66 and F67 of images/FORMAT.md. New packs, then new placements, both durable; only the sweep that follows
deletes the old ones. Whoever reads meanwhile finds everything, by the old placement or the new.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from ckpt.codec.frame import Kind
from ckpt.codec.limits import BLOB_CHUNKS_MAX, PLACEMENT_SERIAL_MAX
from ckpt.codec.objects import chunk_digests
from ckpt.codec.pack import DIGEST_BYTES, BlobKind, PackList, damaged
from ckpt.codec.placement import Layer, PackRef, PlacedFile, Placement
from ckpt.errors import CkptError
from ckpt.model.progress import UNWATCHED, Progress
from ckpt.store import layout
from ckpt.store.backend import Backend, Lease
from ckpt.store.building import PackBuilder, PackTable
from ckpt.store.indexing import put_index
from ckpt.store.layout import PlacementName
from ckpt.store.marking import Needs
from ckpt.store.objects import Objects
from ckpt.store.packs import Packs
from ckpt.store.parallel import WORKERS
from ckpt.store.vault import Vault
from ckpt.units import CHUNK_BYTES, CheckpointId, Digest

WASTE_MAX: Final = 0.5
"""A pack is written anew when at least this share of its bytes is needed by nobody."""

_PACKS_AT_ONCE: Final = 128
"""Where each chunk of them went is kept in memory: about 1 MiB a pack."""

_Moves = dict[int, tuple[int, int]]
"""From a chunk's number in the old pack to its pack's place in the table and its number there."""


class Repacking:
    """One pass over the packs. Other writers and readers may be at work."""

    def __init__(self, backend: Backend, vault: Vault, packs: Packs, progress: Progress = UNWATCHED) -> None:
        self._backend = backend
        self._progress = progress
        self._vault = vault
        self._packs = packs
        self._objects = Objects(backend, vault)
        self._table = PackTable()

    def run(self, needs: Needs, kept: set[CheckpointId], lease: Lease) -> int:
        """Write wasteful packs anew; gives the bytes of what was written."""
        wasteful = [ref for ref in needs.packs.values() if self.waste(ref, needs) >= WASTE_MAX]
        wasteful.sort(key=lambda ref: ref.name)
        for ref in wasteful:
            self._progress.expect(needs.chunks[ref.name].bit_count() * CHUNK_BYTES)
        return sum(
            self._repack(wasteful[at : at + _PACKS_AT_ONCE], needs, kept, lease)
            for at in range(0, len(wasteful), _PACKS_AT_ONCE)
        )

    def _repack(self, wasteful: list[PackRef], needs: Needs, kept: set[CheckpointId], lease: Lease) -> int:
        with self._backend.writing():
            lease.pin(layout.pack(ref.name) for ref in wasteful)
        moved: dict[Digest, _Moves] = {}
        with ThreadPoolExecutor(WORKERS, "repack") as pool:
            builder = PackBuilder(self._backend, self._vault, pool, self._table, lease)
            for ref in wasteful:
                moves = self._move(ref, needs.chunks[ref.name], builder)
                if moves:
                    moved[ref.name] = moves
            builder.finish()
        with self._backend.writing():
            self._backend.flush()
            space = put_index(self._backend, self._vault, builder.hooks, self._table)
        placements = sum(self._move_checkpoint(checkpoint, moved) for checkpoint in sorted(kept))
        return builder.stored_bytes + space + placements

    def waste(self, ref: PackRef, needs: Needs) -> float:
        """The share of a pack's bytes that nobody needs; 0 where it is not known, and where nothing is needed."""
        bits = needs.chunks.get(ref.name, 0)
        if not bits:
            return 0.0
        try:
            listed = self._packs.list_of(ref)
        except CkptError:
            return 0.0  # damaged: verify tells of it, and nothing is made of it here
        return 1 - needed_bytes(listed, bits) / (listed.offsets[-1] - listed.offsets[0])

    def _move(self, ref: PackRef, bits: int, builder: PackBuilder) -> _Moves:
        """The needed chunks of a pack into new ones; nothing of one that cannot be read."""
        moves: _Moves = {}
        try:
            listed = self._packs.list_of(ref)
            for number, entry in enumerate(listed.blobs):
                needed = (bits >> (number * BLOB_CHUNKS_MAX)) & ((1 << entry.chunks) - 1)
                if needed:
                    moves.update(self._move_blob(ref, number, needed, builder))
                    self._progress.moved(needed.bit_count() * CHUNK_BYTES)
        except CkptError:
            # Damaged: what was moved of it so far is not needed, and the pack stays.
            return {}
        return moves

    def _move_blob(self, ref: PackRef, number: int, needed: int, builder: PackBuilder) -> _Moves:
        listed = self._packs.list_of(ref)
        entry = listed.blobs[number]
        plain = self._packs.read_blob(ref, number)
        first = number * BLOB_CHUNKS_MAX
        if entry.kind is BlobKind.WHOLE and b"".join(chunk_digests(plain)) != listed.digests_of(
            first, entry.chunks
        ):
            raise damaged(ref.name, f"a chunk of its blob {number} has another digest than it lists")
        moves: _Moves = {}
        for start, count in runs_of(needed, entry.chunks):
            raw = listed.digests_of(first + start, count)
            digests = [raw[at : at + DIGEST_BYTES] for at in range(0, len(raw), DIGEST_BYTES)]
            content = plain[start * CHUNK_BYTES : (start + count) * CHUNK_BYTES]
            at = first + start
            for stored, pack, chunk in builder.add(entry.kind, content, digests):
                moves.update((at + offset, (pack, chunk + offset)) for offset in range(stored))
                at += stored
        return moves

    def _move_checkpoint(self, checkpoint: CheckpointId, moved: dict[Digest, _Moves]) -> int:
        """Write a placement that says where the chunks are now; gives its space."""
        name = self._objects.newest_placement(checkpoint)
        placement = self._objects.read_placement(name) if name else None
        if name is None or placement is None or not any(ref.name in moved for ref in placement.packs):
            return 0
        serial = name.serial + 1
        if serial > PLACEMENT_SERIAL_MAX:
            return 0
        made = _moved_placement(placement, moved, self._table)
        with self._backend.writing():
            if self._backend.stat(layout.manifest(checkpoint)) is None:
                return 0  # removed meanwhile
            newer = PlacementName(checkpoint=checkpoint, serial=serial).object
            space = self._objects.put_plain(newer, Kind.PLACEMENT, made.encode())
            self._backend.flush()
            return space or 0


def needed_bytes(listed: PackList, bits: int) -> int:
    """How many bytes of a pack's blobs belong to the chunks with these bits: each blob's in proportion."""
    total = 0.0
    for number, entry in enumerate(listed.blobs):
        needed = (bits >> (number * BLOB_CHUNKS_MAX)) & ((1 << entry.chunks) - 1)
        total += entry.stored_bytes * needed.bit_count() / entry.chunks
    return round(total)


def _moved_placement(placement: Placement, moved: dict[Digest, _Moves], made: PackTable) -> Placement:
    table = PackTable()
    files = tuple(
        PlacedFile(
            root=file.root,
            size_bytes=file.size_bytes,
            layers=tuple(_moved_layer(layer, placement, moved, made, table) for layer in file.layers),
            addresses=file.addresses,
        )
        for file in placement.files
    )
    return Placement(checkpoint=placement.checkpoint, packs=table.whole(), files=files)


def _moved_layer(
    layer: Layer, placement: Placement, moved: dict[Digest, _Moves], made: PackTable, table: PackTable
) -> Layer:
    new = Layer(starts=array("I"), counts=array("I"), packs=array("I"), chunks=array("I"))
    for start, count, pack, chunk in zip(layer.starts, layer.counts, layer.packs, layer.chunks, strict=True):
        ref = placement.packs[pack]
        moves = moved.get(ref.name)
        if moves is None:
            new.add(start, count, table.place_of(ref), chunk)
            continue
        for offset in range(count):
            place, number = moves[chunk + offset]
            found = made.refs[place]
            assert found is not None
            new.add(start + offset, 1, table.place_of(found), number)
    return new


def runs_of(bits: int, count: int) -> Iterable[tuple[int, int]]:
    """Where bits stand together: (first, how many) of each run."""
    at = 0
    while at < count:
        if not bits >> at & 1:
            at += 1
            continue
        end = at
        while end < count and bits >> end & 1:
            end += 1
        yield at, end - at
        at = end
