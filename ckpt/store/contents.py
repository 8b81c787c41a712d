"""The files of one checkpoint as they are read back, piece by piece, every byte verified.

Rules: F32 and F87 to F93 of images/FORMAT.md. First the digests of all chunks are compared with the root that the
manifest names; then each chunk with its digest.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

from ckpt.codec.frame import Kind
from ckpt.codec.limits import BLOB_CHUNKS_MAX
from ckpt.codec.objects import ZERO_DIGEST, RootDigest, chunk_digests
from ckpt.codec.pack import DIGEST_BYTES, PackList, damaged
from ckpt.codec.placement import Layer, PlacedFile, Placement
from ckpt.errors import ObjectCorrupt
from ckpt.model.checkpoint import StoredFile
from ckpt.store.packs import Packs
from ckpt.units import CHUNK_BYTES, Digest

PIECE_CHUNKS: Final = BLOB_CHUNKS_MAX
"""What is read at once: 1 MiB."""

_DIGESTS_KEPT: Final = 1 << 20
"""Of how many chunks of a file the digests are kept that were compared with its root: 32 MiB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A part of a file; `number` counts them from 0."""

    offset: int
    size_bytes: int
    number: int


class Before(NamedTuple):
    """What new chunks are compared with: whole chunks, and by their numbers the deltas that some have to those."""

    digests: bytes | bytearray
    whole: bytes | bytearray
    whole_digests: bytes | bytearray
    deltas: dict[int, bytes]


class Contents(Protocol):
    """The files of a checkpoint. For several threads."""

    def pieces(self, file: StoredFile) -> Iterator[Piece]:
        """The parts of the file, in order.

        Raises:
            ObjectCorrupt: what is known of the file does not fit its root.
        """

    def read(self, file: StoredFile, piece: Piece) -> bytes | bytearray:
        """The verified bytes of a piece.

        Raises:
            ObjectMissing: something that it needs is not there.
            ObjectCorrupt: damaged.
        """

    def read_range(self, file: StoredFile, offset: int, size: int) -> bytes:
        """The verified bytes from `offset` on, all of which the file has; raises what read() and pieces() do."""

    def page_digests(self, file: StoredFile) -> bytes:
        """The digests of the chunks of the file in order, one after another; raises what read_range() does."""


class PlacedContents:
    """The files of a checkpoint, by its placement. Fits Contents."""

    def __init__(self, packs: Packs, placement: Placement) -> None:
        self._packs = packs
        self.placement = placement
        self._files = {file.root: file for file in placement.files}
        self._checked: tuple[str, list[bytes]] = ("", [])
        self._proved: set[str] = set()

    def pieces(self, file: StoredFile) -> Iterator[Piece]:
        """The parts of the file, in order; the root is compared before the first."""
        self.check_root(self.placed(file))
        step = PIECE_CHUNKS * CHUNK_BYTES
        return (
            Piece(offset=offset, size_bytes=min(step, file.size_bytes - offset), number=offset // step)
            for offset in range(0, file.size_bytes, step)
        )

    def read(self, file: StoredFile, piece: Piece) -> bytes | bytearray:
        """The verified bytes of a piece."""
        first, count = piece.offset // CHUNK_BYTES, -(-piece.size_bytes // CHUNK_BYTES)
        chunks = self.verified(self.placed(file), first, count)
        return chunks if len(chunks) == piece.size_bytes else chunks[: piece.size_bytes]

    def read_range(self, file: StoredFile, offset: int, size: int) -> bytes:
        """The verified bytes from `offset` on; the root is compared before the first."""
        placed = self._proved_file(file)
        first, end = offset // CHUNK_BYTES, -(-(offset + size) // CHUNK_BYTES)
        parts = []
        while first < end:
            # To the end of a piece: what is read next begins where a blob does.
            count = min(end, (first // PIECE_CHUNKS + 1) * PIECE_CHUNKS) - first
            parts.append(self.verified(placed, first, count))
            first += count
        skipped = offset % CHUNK_BYTES
        return b"".join(parts)[skipped : skipped + size]

    def page_digests(self, file: StoredFile) -> bytes:
        """The digests of the chunks of the file, compared with its root."""
        placed = self._proved_file(file)
        return b"".join(
            bytes(self.digests(placed, first, min(PIECE_CHUNKS, placed.chunk_count - first)))
            for first in range(0, placed.chunk_count, PIECE_CHUNKS)
        )

    def placed(self, file: StoredFile) -> PlacedFile:
        """Where the file lies.

        Raises:
            ObjectCorrupt: the placement does not say.
        """
        found = self._files.get(file.root)
        if found is None or found.size_bytes != file.size_bytes:
            raise self._damaged(f"it does not say where {file.name} is")
        return found

    def check_root(self, file: PlacedFile) -> None:
        """Compare the digests that the packs tell of a file with its root.

        Raises:
            ObjectCorrupt: they are others.
        """
        digest = RootDigest(file.size_bytes)
        kept = []
        for first in range(0, file.chunk_count, PIECE_CHUNKS):
            digests = bytes(self.digests(file, first, min(PIECE_CHUNKS, file.chunk_count - first)))
            digest.add(digests)
            if first < _DIGESTS_KEPT:
                kept.append(digests)
        if (found := digest.root()) != file.root:
            raise self._damaged(f"the chunks that it names give the root {found} where {file.root} belongs")
        self._checked = file.root, kept
        # The placement stays, and a pack's list is proved by its name: what they tell later is the same.
        self._proved.add(file.root)

    def verified(self, file: PlacedFile, first: int, count: int) -> bytes | bytearray:
        """The bytes of chunks, compared with the digests that check_root() has compared."""
        chunks = self.composed(file, first, count)
        expected = self._expected(file, first, count)
        found = chunk_digests(chunks)
        if b"".join(found) != expected:
            wrong = next(
                number
                for number, digest in enumerate(found)
                if digest != expected[number * DIGEST_BYTES : (number + 1) * DIGEST_BYTES]
            )
            raise damaged(
                self._topmost_pack(file, first + wrong),
                f"chunk {first + wrong} of a file of {self.placement.checkpoint[:12]} has the digest "
                f"{found[wrong].hex()}, which is not its own",
            )
        return chunks

    def _proved_file(self, file: StoredFile) -> PlacedFile:
        placed = self.placed(file)
        if file.root not in self._proved:
            self.check_root(placed)
        return placed

    def _expected(self, file: PlacedFile, first: int, count: int) -> bytes | bytearray:
        root, kept = self._checked
        place, rest = divmod(first, PIECE_CHUNKS)
        if root == file.root and not rest and place < len(kept) and len(kept[place]) == count * DIGEST_BYTES:
            return kept[place]
        return self.digests(file, first, count)

    def composed(self, file: PlacedFile, first: int, count: int) -> bytes | bytearray:
        """The bytes of chunks as the packs give them: unverified."""
        return self.layers(file.layers, first, count)

    def before(self, file: PlacedFile, first: int, count: int) -> Before:
        """The chunks without their deltas, and those.

        Raises:
            ObjectMissing, ObjectCorrupt: a blob of them cannot be read.
        """
        whole = self.layers(file.layers[:1], first, count)
        digests = self.digests(file, first, count)
        deltas: dict[int, bytes] = {}
        for layer in file.layers[1:]:
            for start, length, pack, chunk in layer.within(first, count):
                blob = self._packs.blob(self.placement.packs[pack], chunk // BLOB_CHUNKS_MAX)
                for number in range(start - first, start - first + length):
                    at = (chunk % BLOB_CHUNKS_MAX + number - start + first) * CHUNK_BYTES
                    found = blob[at : at + CHUNK_BYTES]
                    if len(found) != CHUNK_BYTES:
                        raise self._no_chunks(pack, chunk, length)
                    there = deltas.get(number)
                    deltas[number] = _xor(bytearray(there), found) if there else found
        whole_digests = self.layer_digests(file.layers[:1], first, count) if deltas else digests
        return Before(digests, whole, whole_digests, deltas)

    def layers(self, layers: tuple[Layer, ...], first: int, count: int) -> bytes | bytearray:
        """The bytes of chunks as these layers alone give them: unverified."""
        out: bytearray | None = None
        blobs: dict[tuple[int, int], bytes] = {}
        for depth, layer in enumerate(layers):
            for start, length, pack, chunk in layer.within(first, count):
                number, place = divmod(chunk, BLOB_CHUNKS_MAX)
                blob = blobs.get((pack, number))
                if blob is None:
                    blob = blobs[pack, number] = self._packs.blob(self.placement.packs[pack], number)
                    alone = out is None and length == count and len(blob) == count * CHUNK_BYTES
                    if alone and not any(above.within(first, count) for above in layers[depth + 1 :]):
                        return blob  # they are one blob: nothing needs to be copied
                begin = place * CHUNK_BYTES
                part = blob[begin : begin + length * CHUNK_BYTES]
                if len(part) != length * CHUNK_BYTES:
                    raise self._no_chunks(pack, chunk, length)
                if out is None:
                    out = bytearray(count * CHUNK_BYTES)
                at = (start - first) * CHUNK_BYTES
                end = at + len(part)
                out[at:end] = _xor(out[at:end], part) if depth else part
        return bytes(count * CHUNK_BYTES) if out is None else out

    def digests(self, file: PlacedFile, first: int, count: int) -> bytes | bytearray:
        """The digests of chunks as the packs tell them; the topmost layer counts."""
        return self.layer_digests(file.layers, first, count)

    def layer_digests(self, layers: tuple[Layer, ...], first: int, count: int) -> bytes | bytearray:
        """The digests of chunks as they are with these layers alone."""
        out = bytearray(ZERO_DIGEST * count)
        lists: dict[int, PackList] = {}
        for layer in layers:
            for start, length, pack, chunk in layer.within(first, count):
                listed = lists.get(pack)
                if listed is None:
                    listed = lists[pack] = self._packs.list_of(self.placement.packs[pack])
                if not listed.holds(chunk, length):
                    raise self._no_chunks(pack, chunk, length)
                at = (start - first) * DIGEST_BYTES
                out[at : at + length * DIGEST_BYTES] = listed.digests_of(chunk, length)
        return out

    def packs_of(self, file: PlacedFile, first: int, count: int) -> set[str]:
        """The names of the packs that these chunks lie in."""
        packs = self.placement.packs
        return {packs[pack].name for layer in file.layers for _, _, pack, _ in layer.within(first, count)}

    def _no_chunks(self, pack: int, chunk: int, count: int) -> ObjectCorrupt:
        return damaged(
            self.placement.packs[pack].name, f"it has no chunks from {chunk} to {chunk + count - 1}"
        )

    def _topmost_pack(self, file: PlacedFile, chunk: int) -> Digest:
        for layer in reversed(file.layers):
            for _, _, pack, _ in layer.within(chunk, 1):
                return self.placement.packs[pack].name
        return file.root

    def _damaged(self, reason: str) -> ObjectCorrupt:
        return ObjectCorrupt(kind=str(Kind.PLACEMENT), name=self.placement.checkpoint, reason=reason)


def _xor(base: bytearray, delta: bytes) -> bytes:
    made = int.from_bytes(base, "little") ^ int.from_bytes(delta, "little")
    return made.to_bytes(len(base), "little")
