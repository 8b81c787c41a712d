"""Where the store already has a chunk: among those that were written last, and in the packs that indexes name.

Rules: F94 to F97 of images/FORMAT.md. Memory does not grow with the store. One chunk of 64 is a hook; when an index
knows the hook, the list of that pack is read, and its neighbours are found in it: chunks that stood together once
mostly stand together again.
Source: sampling and locality as in Lillibridge et al., "Sparse Indexing", FAST 2009.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Iterable
from itertools import count, repeat
from typing import Final

from ckpt.codec.frame import HEADER_BYTES, Kind
from ckpt.codec.hooks import (
    HEAD,
    MARK_BYTES,
    NAME_BYTES,
    PLACE_BYTES,
    decode_index,
    is_hook,
    layout_of,
    read_marks,
)
from ckpt.codec.limits import BLOB_CHUNKS_MAX, INDEX_BYTES_MAX
from ckpt.codec.pack import DIGEST_BYTES, BlobKind
from ckpt.errors import FormatUnknown, ObjectCorrupt, ObjectMissing
from ckpt.store import layout
from ckpt.store.backend import Backend, Lease
from ckpt.store.building import PackTable
from ckpt.store.packs import Packs
from ckpt.store.vault import Vault
from ckpt.units import Digest

RECENT_CHUNKS: Final = 96_000
"""Chunks of a generation, of which two are kept: about 200 bytes each, and 375 MiB of plain bytes."""

CHAMPIONS: Final = 12
"""Packs whose chunks are all looked at: up to 16,384 of them, about 2 MiB of memory each."""

_INDEX_IN_MEMORY: Final = 4 << 20
"""Indexes up to this size are read whole, up to as much in all as 8 of them."""
_INDEXES_IN_MEMORY: Final = 8 * _INDEX_IN_MEMORY
_MARKS_AT_ONCE: Final = 512
_MARK_MAX: Final = 1 << 64


class RecentChunks:
    """Whole chunks that were written or found last, by their digests: exact, and bounded by generations."""

    def __init__(self) -> None:
        self._new: dict[bytes, tuple[int, int]] = {}
        self._old: dict[bytes, tuple[int, int]] = {}

    def find(self, digest: bytes) -> tuple[int, int] | None:
        """Pack and number of the chunk."""
        return self._new.get(digest) or self._old.get(digest)

    def add(self, digests: list[bytes], pack: int, first: int) -> None:
        """Remember chunks that follow each other from this number on, and forget what was added long ago."""
        if len(self._new) >= RECENT_CHUNKS:
            self._new, self._old = {}, self._new
        self._new.update(zip(digests, zip(repeat(pack), count(first)), strict=False))

    def find_all(self, digests: list[bytes]) -> dict[bytes, tuple[int, int]]:
        """Packs and numbers of those of these chunks that are remembered."""
        found: dict[bytes, tuple[int, int]] = {}
        for known in (self._old, self._new):
            if not known.keys().isdisjoint(digests):
                found.update((digest, known[digest]) for digest in digests if digest in known)
        return found


class Similar:
    """Finds chunks in packs that are there. Not for several threads."""

    def __init__(self, backend: Backend, vault: Vault, packs: Packs, table: PackTable, lease: Lease) -> None:
        self._backend = backend
        self._vault = vault
        self._packs = packs
        self._table = table
        self._lease = lease
        self._champions: OrderedDict[Digest, dict[bytes, tuple[int, int]]] = OrderedDict()
        self._refused: set[Digest] = set()
        self._indexes: list[_Index] | None = None

    def choose(self, digests: Iterable[bytes], own_hooks: dict[bytes, int], *, dense: bool) -> None:
        """Read the lists of the packs that the hooks among these digests stand in; if `dense`, that all do."""
        for digest in digests if dense else filter(is_hook, digests):
            name = self._own(own_hooks.get(digest)) or self._indexed(digest)
            if name is None or name in self._refused:
                continue
            if name in self._champions:
                self._champions.move_to_end(name)
            else:
                self._admit(name)

    def distrust(self, packs: Iterable[str]) -> None:
        """Find nothing in these packs from now on."""
        for name in packs:
            self._refused.add(Digest(name))
            self._champions.pop(Digest(name), None)

    def find_all(self, digests: list[bytes]) -> dict[bytes, tuple[int, int]]:
        """Packs and numbers of those of these chunks that are in the packs which were chosen last."""
        found: dict[bytes, tuple[int, int]] = {}
        for known in self._champions.values():
            if not known.keys().isdisjoint(digests):
                found.update((digest, known[digest]) for digest in digests if digest in known)
        return found

    def _own(self, place: int | None) -> Digest | None:
        ref = None if place is None else self._table.refs[place]
        return ref.name if ref else None

    def _indexed(self, digest: bytes) -> Digest | None:
        if self._indexes is None:
            self._indexes = open_indexes(self._backend)
        mark = self._vault.mark(digest)
        for index in self._indexes:
            try:
                found = index.find(mark)
            except (ObjectCorrupt, ObjectMissing):
                continue  # an index is a hint; verify tells of it
            if found is not None:
                return found
        return None

    def _admit(self, name: Digest) -> None:
        try:
            # Pinned before it is looked for: a sweep cannot take it any more.
            with self._backend.writing():
                self._lease.pin((layout.pack(name),))
                ref = self._packs.find(name)
            listed = None if ref is None else self._packs.list_of(ref)
        except (ObjectCorrupt, ObjectMissing, FormatUnknown):
            listed = ref = None
        if listed is None or ref is None:
            self._refused.add(name)
            return
        place = self._table.place_of(ref)
        chunks: dict[bytes, tuple[int, int]] = {}
        at = 0
        for number, blob in enumerate(listed.blobs):
            first = number * BLOB_CHUNKS_MAX
            if blob.kind is BlobKind.WHOLE:
                for chunk in range(blob.chunks):
                    begin = at + chunk * DIGEST_BYTES
                    chunks[listed.digests[begin : begin + DIGEST_BYTES]] = (place, first + chunk)
            at += blob.chunks * DIGEST_BYTES
        self._champions[name] = chunks
        if len(self._champions) > CHAMPIONS:
            self._champions.popitem(last=False)


class _Index:
    """One index: whole in memory if it is small, else read where a mark must be."""

    def __init__(self, backend: Backend, name: str, size_bytes: int, *, whole: bool) -> None:
        self._backend = backend
        self._name = name
        self._loaded: tuple[array[int], array[int], tuple[Digest, ...]] | None = None
        if whole:
            plain = (backend.read_part(name, 0, size_bytes) or b"")[HEADER_BYTES:]
            self._loaded = decode_index(plain, name)
        else:
            head = self._part(HEADER_BYTES, HEAD.size)
            self._counts = layout_of(head, size_bytes - HEADER_BYTES, name)

    def find(self, mark: int) -> Digest | None:
        """The pack that has the chunk with this mark."""
        return self._find_loaded(mark) if self._loaded is not None else self._find_on_disk(mark)

    def _find_loaded(self, mark: int) -> Digest | None:
        assert self._loaded is not None
        marks, places, names = self._loaded
        at = bisect_left(marks, mark)
        return names[places[at]] if at < len(marks) and marks[at] == mark else None

    def _find_on_disk(self, mark: int) -> Digest | None:
        packs, count, first_mark, first_place = self._counts
        low, high = 0, count
        while low < high:
            # Marks are digests: evenly spread, so that a mark is near where its value says.
            guess = min(max(low, mark * count // _MARK_MAX - _MARKS_AT_ONCE // 2), high - 1)
            width = min(_MARKS_AT_ONCE, high - guess)
            marks = read_marks(self._part(first_mark + guess * MARK_BYTES, width * MARK_BYTES))
            if marks[0] > mark:
                high = guess
            elif marks[-1] < mark:
                low = guess + width
            else:
                at = bisect_left(marks, mark)
                return self._pack_at(guess + at, packs, first_place) if marks[at] == mark else None
        return None

    def _pack_at(self, number: int, packs: int, first_place: int) -> Digest | None:
        place = int.from_bytes(self._part(first_place + number * PLACE_BYTES, PLACE_BYTES), "big")
        if place >= packs:
            return None
        offset = HEADER_BYTES + HEAD.size + place * NAME_BYTES
        return Digest(self._part(offset, NAME_BYTES).hex())

    def _part(self, offset: int, count: int) -> bytes:
        content = self._backend.read_part(self._name, offset, count)
        if content is None or len(content) != count:
            raise ObjectCorrupt(kind=str(Kind.INDEX), name=self._name, reason="it is cut off, or gone")
        return content


def open_indexes(backend: Backend) -> list[_Index]:
    """All indexes that can be read. They are not sealed: their marks are keyed where the store is encrypted."""
    found, budget = [], _INDEXES_IN_MEMORY
    for name in backend.list(layout.INDEXES):
        stat = backend.stat(name) if layout.digest_in(name) else None
        if stat is None or stat.size_bytes > HEADER_BYTES + INDEX_BYTES_MAX:
            continue
        whole = stat.size_bytes <= min(_INDEX_IN_MEMORY, budget)
        budget -= stat.size_bytes if whole else 0
        try:
            found.append(_Index(backend, name, stat.size_bytes, whole=whole))
        except (ObjectCorrupt, ObjectMissing):
            continue
    return found
