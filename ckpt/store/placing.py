"""The placement of one new file, as its pieces are examined.

Rules: F87 to F93 of images/FORMAT.md.
"""

from __future__ import annotations

from typing import Final

from ckpt.codec.objects import RootDigest
from ckpt.codec.pack import BlobKind
from ckpt.codec.placement import Layer, PlacedFile
from ckpt.model.checkpoint import AddressRun
from ckpt.store.building import PackBuilder
from ckpt.store.examining import Changed, Examined, Fresh, Same
from ckpt.store.parent import Parent
from ckpt.store.similar import RecentChunks, Similar
from ckpt.units import CHUNK_BYTES, ByteCount

_DENSE_CHUNKS: Final = 1024
"""Of files with at most so many chunks every one is looked up in the indexes, of larger ones the hooks."""


class FileBuilder:
    """Gives each chunk of a file its place; new ones go to the pack builder."""

    def __init__(
        self,
        size_bytes: int,
        builder: PackBuilder,
        recent: RecentChunks,
        similar: Similar,
        parent: Parent | None,
    ) -> None:
        self._size = size_bytes
        self._builder = builder
        self._recent = recent
        self._similar = similar
        self._parent = parent
        self._dense = size_bytes <= _DENSE_CHUNKS * CHUNK_BYTES
        self._layers: list[Layer] = [Layer()]
        self._root = RootDigest(size_bytes)

    def place(self, examined: Examined) -> None:
        """Place the chunks of a piece; pieces come in order."""
        self._root.add(b"".join(examined.digests))
        self._similar.distrust(examined.damaged)
        unknown = [digest for part in examined.parts for digest in _unknown(part, examined)]
        found = self._found(unknown) if unknown else {}
        # A chunk may stand twice among those that are new.
        twins = len(set(unknown)) < len(unknown)
        for part in examined.parts:
            match part:
                case Same():
                    self._copy(part.start, part.length, part.file, part.chunk)
                case Changed():
                    self._place_changed(part, examined, found.get(part.digest))
                case Fresh() if found or twins:
                    self._place_fresh(part, examined, found)
                case Fresh():
                    self._store(part.start, part.length, examined)

    def finish(self, addresses: tuple[AddressRun, ...]) -> PlacedFile:
        """The file's placement."""
        while len(self._layers) > 1 and not self._layers[-1].starts:
            self._layers.pop()
        return PlacedFile(
            root=self._root.root(),
            size_bytes=ByteCount(self._size),
            layers=tuple(self._layers),
            addresses=addresses,
        )

    def _found(self, digests: list[bytes]) -> dict[bytes, tuple[int, int]]:
        """Where those of these chunks are that the store has, as far as it is known at a bearable cost."""
        self._similar.choose(digests, self._builder.hooks, dense=self._dense)
        found = self._similar.find_all(digests)
        found.update(self._recent.find_all(digests))
        return found

    def _place_changed(self, part: Changed, examined: Examined, place: tuple[int, int] | None) -> None:
        place = place or self._recent.find(part.digest)
        if place is not None:
            self._layers[0].add(part.start, 1, *place)
            return
        if part.delta is None:
            self._store(part.start, 1, examined)
            return
        self._copy(part.start, 1, part.file, part.chunk, layers=1)
        [(_, pack, chunk)] = self._builder.add(BlobKind.DELTA, part.delta, [part.digest])
        self._layer(1).add(part.start, 1, pack, chunk)

    def _place_fresh(self, part: Fresh, examined: Examined, found: dict[bytes, tuple[int, int]]) -> None:
        begin = part.start
        end = part.start + part.length
        seen: set[bytes] = set()
        for number, digest in enumerate(examined.digests_of(part.start, part.length), part.start):
            place = found.get(digest)
            if place is None and digest in seen:
                # Its twin stands in the run that is about to be stored.
                self._store(begin, number - begin, examined)
                begin = number
                place = self._recent.find(digest)
            seen.add(digest)
            if place is not None:
                self._store(begin, number - begin, examined)
                self._layers[0].add(number, 1, *place)
                begin = number + 1
        self._store(begin, end - begin, examined)

    def _store(self, start: int, count: int, examined: Examined) -> None:
        """Chunks that the store has not seen."""
        if not count:
            return
        digests = examined.digests_of(start, count)
        for stored, pack, chunk in self._builder.add(BlobKind.WHOLE, examined.chunks(start, count), digests):
            self._layers[0].add(start, stored, pack, chunk)
            self._recent.add(digests if stored == len(digests) else digests[:stored], pack, chunk)
            digests = digests[stored:]
            start += stored

    def _copy(self, start: int, count: int, file: PlacedFile, chunk: int, layers: int | None = None) -> None:
        """Chunks that lie where the parent's lie, in all its layers or the lowest ones."""
        assert self._parent is not None
        for depth, layer in enumerate(file.layers[:layers]):
            for at, length, pack, number in layer.within(chunk, count):
                self._layer(depth).add(start + at - chunk, length, self._parent.place_of(pack), number)

    def _layer(self, depth: int) -> Layer:
        while len(self._layers) <= depth:
            self._layers.append(Layer())
        return self._layers[depth]


def _unknown(part: Same | Changed | Fresh, examined: Examined) -> list[bytes]:
    """The digests of chunks that the parent does not have."""
    match part:
        case Same():
            return []
        case Changed():
            return [part.digest]
        case Fresh():
            return examined.digests_of(part.start, part.length)
