"""New packs: chunks are gathered to blobs, blobs to packs; compressed and written by other threads.

Rules: F80 to F86 of images/FORMAT.md. A chunk's place is known at once, the pack's name only when it is whole.
"""

from __future__ import annotations

import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final

from ckpt.codec.frame import HEADER_BYTES, SALT_BYTES, Compression, Kind, pack_header
from ckpt.codec.hooks import is_hook
from ckpt.codec.limits import BLOB_CHUNKS_MAX, PACK_BLOBS_MAX
from ckpt.codec.pack import TRAILER, BlobEntry, BlobKind, PackList
from ckpt.codec.placement import PackRef
from ckpt.store import layout
from ckpt.store.backend import Backend, Lease
from ckpt.store.compress import BlobCompressor
from ckpt.store.packs import LIST_NUMBER
from ckpt.store.vault import Vault
from ckpt.units import CHUNK_BYTES, ByteCount, Digest

PACK_CHUNKS: Final = 16 * BLOB_CHUNKS_MAX
"""Chunks of a new pack: it is compressed in memory, and made durable with one fsync(2)."""

BLOB_CHUNKS: Final = {BlobKind.WHOLE: BLOB_CHUNKS_MAX, BlobKind.DELTA: BLOB_CHUNKS_MAX // 4}
"""Chunks of a new blob. Whoever reads a page of a long chain needs a few deltas of each of many generations."""

DENSE_CHUNKS: Final = 4096
"""An index of new packs with at most so many whole chunks names all of them, not the hooks alone."""

_PACKS_UNDER_WAY: Final = 2


@dataclass(slots=True)
class PackTable:
    """The packs that a placement refers to; a new pack has its place before it has its name."""

    refs: list[PackRef | None] = field(default_factory=list)
    _places: dict[str, int] = field(default_factory=dict)

    def place_of(self, ref: PackRef) -> int:
        """The place of a pack that is there."""
        place = self._places.get(ref.name)
        if place is None:
            place = self._places[ref.name] = self.reserve()
            self.refs[place] = ref
        return place

    def reserve(self) -> int:
        """The place of a pack that will be made."""
        self.refs.append(None)
        return len(self.refs) - 1

    def fill(self, place: int, ref: PackRef) -> None:
        """The pack that was made for a place."""
        self.refs[place] = ref
        self._places[ref.name] = place

    def whole(self) -> tuple[PackRef, ...]:
        """All of them, when each has its name."""
        found = tuple(ref for ref in self.refs if ref is not None)
        assert len(found) == len(self.refs)
        return found


@dataclass(slots=True)
class _Blob:
    """A blob that is being filled."""

    kind: BlobKind
    pack: _Pack
    number: int
    parts: list[bytes] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)


@dataclass(slots=True)
class _Pack:
    """A pack that is being filled."""

    place: int
    salt: bytes
    blobs: list[Future[tuple[Compression, bytes]] | None] = field(default_factory=list)
    kinds: list[BlobKind] = field(default_factory=list)
    digests: list[list[bytes]] = field(default_factory=list)

    @property
    def is_full(self) -> bool:
        """Whether no further blob belongs in it; each counts as one that will be full."""
        chunks = sum(BLOB_CHUNKS[kind] for kind in self.kinds)
        return len(self.blobs) >= PACK_BLOBS_MAX or chunks + BLOB_CHUNKS_MAX > PACK_CHUNKS


class PackBuilder:
    """Makes packs. Its caller is one thread; compressing and writing is done in the pool."""

    def __init__(
        self, backend: Backend, vault: Vault, pool: ThreadPoolExecutor, table: PackTable, lease: Lease
    ) -> None:
        self._backend = backend
        self._vault = vault
        self._pool = pool
        self._table = table
        self._lease = lease
        self._compressor = BlobCompressor()
        self._pack: _Pack | None = None
        self._open: dict[BlobKind, _Blob] = {}
        self._writing: deque[tuple[int, Future[tuple[PackRef, ByteCount]]]] = deque()
        self._whole_count = 0
        self.stored_bytes = 0
        self.chunk_count = 0
        self.created: list[str] = []
        self.hooks: dict[bytes, int] = {}
        """The digests of whole chunks that indexes are to name, and the places of their packs."""

    def add(self, kind: BlobKind, chunks: bytes, digests: list[bytes]) -> list[tuple[int, int, int]]:
        """Take in chunks that follow each other; gives how many went where: (count, pack's place, number)."""
        if len(digests) == BLOB_CHUNKS[kind] and self._can_stand_alone(kind):
            # As it stands in memory, a blob of its own: nothing is copied.
            return [self._add_whole_blob(kind, chunks, digests)]
        places = []
        at = 0
        while at < len(digests):
            blob = self._open.get(kind) or self._begin_blob(kind)
            count = min(BLOB_CHUNKS[kind] - len(blob.digests), len(digests) - at)
            places.append((count, blob.pack.place, blob.number * BLOB_CHUNKS_MAX + len(blob.digests)))
            whole = count == len(digests)
            blob.parts.append(chunks if whole else chunks[at * CHUNK_BYTES : (at + count) * CHUNK_BYTES])
            blob.digests += digests if whole else digests[at : at + count]
            self._count(kind, digests[at : at + count], blob.pack)
            at += count
            if len(blob.digests) == BLOB_CHUNKS[kind]:
                self._end_blob(kind)
        return places

    def finish(self) -> None:
        """Write what is still open, and wait until every pack has its name.

        Raises:
            NoSpace, StoreUnusable: what went wrong with one of them.
        """
        for kind in list(self._open):
            self._end_blob(kind)
        self._end_pack()
        self._settle(0)

    def settle_one(self) -> None:
        """Wait for the oldest pack if too many are under way: each is in memory."""
        self._settle(_PACKS_UNDER_WAY)

    def _begin_blob(self, kind: BlobKind) -> _Blob:
        pack = self._pack_with_room()
        blob = self._open[kind] = _Blob(kind=kind, pack=pack, number=len(pack.blobs))
        pack.blobs.append(None)
        pack.kinds.append(kind)
        pack.digests.append(blob.digests)
        return blob

    def _can_stand_alone(self, kind: BlobKind) -> bool:
        blob = self._open.get(kind)
        return blob is None or self._pack is None or not self._pack.is_full

    def _add_whole_blob(self, kind: BlobKind, chunks: bytes, digests: list[bytes]) -> tuple[int, int, int]:
        pack = self._pack_with_room()
        number = len(pack.blobs)
        pack.kinds.append(kind)
        pack.blobs.append(self._pool.submit(lambda: self._sealed(pack, number, chunks)))
        pack.digests.append(digests)
        self._count(kind, digests, pack)
        self._write_full(pack)
        return len(digests), pack.place, number * BLOB_CHUNKS_MAX

    def _count(self, kind: BlobKind, digests: list[bytes], pack: _Pack) -> None:
        self.chunk_count += len(digests)
        if kind is not BlobKind.WHOLE:
            return
        if self._whole_count <= DENSE_CHUNKS < self._whole_count + len(digests):
            self.hooks = {digest: place for digest, place in self.hooks.items() if is_hook(digest)}
        self._whole_count += len(digests)
        if self._whole_count <= DENSE_CHUNKS:
            self.hooks.update(dict.fromkeys(digests, pack.place))
        else:
            self.hooks.update((digest, pack.place) for digest in digests if is_hook(digest))

    def _pack_with_room(self) -> _Pack:
        if self._pack is not None and self._pack.is_full:
            for kind in list(self._open):
                self._end_blob(kind)
            self._end_pack()
        if self._pack is None:
            self._pack = _Pack(place=self._table.reserve(), salt=os.urandom(SALT_BYTES))
        return self._pack

    def _end_blob(self, kind: BlobKind) -> None:
        blob = self._open.pop(kind)
        pack, number, parts = blob.pack, blob.number, blob.parts
        pack.blobs[number] = self._pool.submit(lambda: self._sealed(pack, number, b"".join(parts)))
        self._write_full(pack)

    def _write_full(self, pack: _Pack) -> None:
        if pack.is_full and not self._open and pack is self._pack:
            self._end_pack()

    def _sealed(self, pack: _Pack, number: int, plain: bytes) -> tuple[Compression, bytes]:
        compression, stored = self._compressor.compress(pack.kinds[number], plain)
        if self._vault.is_encrypted:
            stored = self._vault.cipher(Kind.PACK, pack.salt).seal(number + 1, stored, b"")
        return compression, stored

    def _end_pack(self) -> None:
        if self._pack is not None:
            pack, self._pack = self._pack, None
            # Its blobs are before it in the pool's queue: they are done or under way when its turn comes.
            self._writing.append((pack.place, self._pool.submit(self._write, pack)))
            self.settle_one()

    def _write(self, pack: _Pack) -> tuple[PackRef, ByteCount]:
        made = [future.result() for future in pack.blobs if future is not None]
        blobs = tuple(
            BlobEntry(stored_bytes=len(stored), chunks=len(digests), compression=compression, kind=kind)
            for (compression, stored), digests, kind in zip(made, pack.digests, pack.kinds, strict=True)
        )
        listed = PackList(blobs=blobs, digests=b"".join(map(b"".join, pack.digests))).encode()
        name = self._vault.pack_name(pack.salt, listed)
        if self._vault.is_encrypted:
            listed = self._vault.cipher(Kind.PACK, pack.salt).seal(LIST_NUMBER, listed, b"")
        body = (pack.salt, *(stored for _, stored in made), listed, TRAILER.pack(len(listed)))
        size = sum(map(len, body))
        space = self._create(name, body, size)
        ref = PackRef(
            name=name, object_bytes=ByteCount(HEADER_BYTES + size), list_bytes=ByteCount(len(listed))
        )
        return ref, space

    def _create(self, name: Digest, body: tuple[bytes, ...], size: int) -> ByteCount:
        place = layout.pack(name)
        content = (pack_header(size, sealed=self._vault.is_encrypted), *body)
        with self._backend.writing():
            # Before it is there: a sweep spares only what somebody says that he needs.
            self._lease.pin((place,))
            self.created.append(place)
            return self._backend.create(place, content) or ByteCount(0)

    def _settle(self, remaining: int) -> None:
        while len(self._writing) > remaining:
            place, written = self._writing.popleft()
            ref, space = written.result()
            self._table.fill(place, ref)
            self.stored_bytes += space


def chunk_padded(content: bytes) -> bytes:
    """The content, filled up with zeros to whole chunks."""
    rest = len(content) % CHUNK_BYTES
    return content if not rest else content + bytes(CHUNK_BYTES - rest)
