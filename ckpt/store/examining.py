"""Which chunks of a new file are as they were, which changed, and which were not there before.

Rules: F32, F60 and F91 of images/FORMAT.md. Runs in other threads: reading, comparing and hashing release the
GIL. Nothing here changes the store.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

from ckpt.codec.objects import ZERO_CHUNK, ZERO_DIGEST, chunk_digests
from ckpt.codec.pack import DIGEST_BYTES
from ckpt.codec.placement import PlacedFile
from ckpt.errors import CkptError
from ckpt.store.building import chunk_padded
from ckpt.store.contents import PIECE_CHUNKS, Before, PlacedContents
from ckpt.store.memory import different_parts
from ckpt.store.parent import Aligned, Alignment
from ckpt.units import CHUNK_BYTES

_GROUP: Final = 16
"""Chunks that are compared at once before each is looked at."""

_DELTA_BITS_MAX: Final = CHUNK_BYTES * 8 // 4
"""With more bits changed than this a delta compresses no better than the chunk itself."""

_LOOK_BYTES: Final = 64
_ZEROS: Final = bytes(PIECE_CHUNKS * CHUNK_BYTES)


class Source(Protocol):
    """Where the chunks of a new file come from."""

    def take(self, first: int, count: int) -> bytes | None:
        """The chunks, if they must be read in order; called by one thread."""

    def digests(self, first: int, count: int) -> bytes | None:
        """The digests of chunks, if they are known before the chunks are read."""

    def read(self, first: int, count: int) -> bytes:
        """Chunks; the last one of the file may be shorter. Called by several threads."""


class Same(NamedTuple):
    """Chunks that are as in the parent."""

    start: int
    length: int
    file: PlacedFile
    chunk: int


class Changed(NamedTuple):
    """A chunk that is another than the parent's, and its XOR with the whole chunk that the parent's is made of.

    The XOR is None where it is not worth keeping.
    """

    start: int
    digest: bytes
    file: PlacedFile
    chunk: int
    delta: bytes | None


class Fresh(NamedTuple):
    """Chunks that the parent has no counterpart of."""

    start: int
    length: int


@dataclass(slots=True)
class Examined:
    """A piece of a file: its parts in order; what no part has is zeros. `data` is None until it is needed."""

    first: int
    count: int
    digests: list[bytes]
    parts: list[Same | Changed | Fresh]
    data: bytes | None
    source: Source
    damaged: frozenset[str] = frozenset()
    """Packs of the parent that did not give what they should: nothing is to be taken from them."""

    def digests_of(self, start: int, count: int) -> list[bytes]:
        """The digests of chunks, by their numbers in the file."""
        at = start - self.first
        return self.digests if count == len(self.digests) else self.digests[at : at + count]

    def chunks(self, start: int, count: int) -> bytes:
        """The bytes of chunks."""
        if self.data is None:
            self.data = chunk_padded(self.source.read(self.first, self.count))
        at = (start - self.first) * CHUNK_BYTES
        end = at + count * CHUNK_BYTES
        return self.data if end - at == len(self.data) else self.data[at:end]


class Examiner:
    """Examines the pieces of one file. For several threads, but for prepare()."""

    def __init__(self, source: Source, alignment: Alignment | None) -> None:
        self._source = source
        self._alignment = alignment

    def prepare(self, first: int, count: int) -> bytes | None:
        """What must be read in order, by the thread that calls examine() or has it called."""
        return self._source.take(first, count)

    def examine_all(self, pieces: list[tuple[int, int]], prepared: list[bytes | None]) -> list[Examined]:
        """Look at several pieces, one after the other."""
        return [
            self.examine(first, count, data) for (first, count), data in zip(pieces, prepared, strict=True)
        ]

    def examine(self, first: int, count: int, prepared: bytes | None) -> Examined:
        """Look at a piece of the file."""
        known = self._source.digests(first, count)
        if known is not None:
            return self._by_digests(first, count, known)
        data = prepared if prepared is not None else self._source.read(first, count)
        return self._by_bytes(first, count, chunk_padded(data))

    def _by_bytes(self, first: int, count: int, data: bytes) -> Examined:
        if is_zeros(data):
            return Examined(first, count, [ZERO_DIGEST] * count, [], data, self._source)
        work = _Work(first, count, data)
        at = first
        for piece in self._aligned(first, count):
            work.fresh(at, piece.start - at)
            at = piece.start + piece.length
            self._compare(work, piece)
        work.fresh(at, first + count - at)
        return Examined(first, count, work.digests, work.parts, data, self._source, frozenset(work.damaged))

    def _aligned(self, first: int, count: int) -> list[Aligned]:
        return list(self._alignment.within(first, count)) if self._alignment else []

    def _compare(self, work: _Work, piece: Aligned) -> None:
        assert self._alignment is not None
        contents = self._alignment.parent.contents
        try:
            before = contents.before(piece.file, piece.chunk, piece.length)
        except CkptError:
            # What cannot be read of the parent is stored anew.
            work.fresh(piece.start, piece.length)
            work.damaged |= contents.packs_of(piece.file, piece.chunk, piece.length)
            return
        work.compare(piece, before, contents)

    def _by_digests(self, first: int, count: int, known: bytes) -> Examined:
        work = _Work(first, count, b"")
        work.digests[:] = split_digests(known)
        at = first
        for piece in self._aligned(first, count):
            work.known_fresh(at, piece.start - at)
            at = piece.start + piece.length
            assert self._alignment is not None
            try:
                before = self._alignment.parent.contents.digests(piece.file, piece.chunk, piece.length)
            except CkptError:
                before = bytearray(piece.length * DIGEST_BYTES)
            work.compare_digests(piece, split_digests(before))
        work.known_fresh(at, first + count - at)
        data = None
        if any(isinstance(part, Changed) for part in work.parts):
            # Only now is it known that some of its bytes are needed.
            data = chunk_padded(self._source.read(first, count))
            assert self._alignment is not None
            work.add_deltas(data, self._alignment.parent.contents)
        return Examined(first, count, work.digests, work.parts, data, self._source, frozenset(work.damaged))


class _Work:
    """The parts of a piece, as they are found."""

    def __init__(self, first: int, count: int, data: bytes) -> None:
        self._first = first
        self._data = data
        self.digests = [ZERO_DIGEST] * count
        self.damaged: set[str] = set()
        self.parts: list[Same | Changed | Fresh] = []

    def fresh(self, start: int, count: int) -> None:
        """Chunks without a counterpart."""
        if count > 0:
            at = (start - self._first) * CHUNK_BYTES
            whole = at == 0 and count * CHUNK_BYTES == len(self._data)
            found = chunk_digests(self._data if whole else self._data[at : at + count * CHUNK_BYTES])
            self._note(start, found)
            self._add_fresh(start, found)

    def known_fresh(self, start: int, count: int) -> None:
        """The same, with their digests known."""
        at = start - self._first
        self._add_fresh(start, self.digests[at : at + count])

    def compare(self, piece: Aligned, before: Before, contents: PlacedContents) -> None:
        """Chunks with their counterparts, all byte by byte: no digest of the parent's is believed for that."""
        digests = split_digests(before.digests)
        whole_digests = split_digests(before.whole_digests) if before.deltas else digests
        self._note(piece.start, digests)
        done = 0
        for number in sorted(before.deltas.keys() | set(self._different(piece, before.whole))):
            at = (piece.start - self._first + number) * CHUNK_BYTES
            new = self._data[at : at + CHUNK_BYTES]
            old = before.whole[number * CHUNK_BYTES : (number + 1) * CHUNK_BYTES]
            bits = int.from_bytes(new, "little") ^ int.from_bytes(old, "little")
            known = before.deltas.get(number)
            if known is not None and bits == int.from_bytes(known, "little"):
                continue
            digest = hashlib.sha256(new).digest()
            if digest == digests[number]:
                # Other bytes than its own are read of the parent's chunk.
                self.damaged |= contents.packs_of(piece.file, piece.chunk + number, 1)
            self._add_same(piece.start + done, number - done, piece)
            done = number + 1
            self._note(piece.start + number, [digest])
            if digest != ZERO_DIGEST:
                # Never a delta to a delta: what is read for a chunk stays two pieces, however long the chain is.
                found = _worthy(bits, old, whole_digests[number])
                self.parts.append(
                    Changed(piece.start + number, digest, piece.file, piece.chunk + number, found)
                )
        self._add_same(piece.start + done, piece.length - done, piece)

    def _different(self, piece: Aligned, whole: bytes | bytearray) -> Iterator[int]:
        """The numbers of the chunks whose bytes are not these."""
        offset = (piece.start - self._first) * CHUNK_BYTES
        size = len(whole)
        for group in different_parts(self._data, offset, whole, range(0, size, _GROUP * CHUNK_BYTES)):
            end = min(group + _GROUP * CHUNK_BYTES, size)
            for at in different_parts(self._data, offset, whole, range(group, end, CHUNK_BYTES)):
                yield at // CHUNK_BYTES

    def compare_digests(self, piece: Aligned, before: list[bytes]) -> None:
        """Chunks by their digests alone."""
        at = piece.start - self._first
        done = 0
        for number, digest in enumerate(self.digests[at : at + piece.length]):
            if digest != before[number]:
                self._add_same(piece.start + done, number - done, piece)
                done = number + 1
                if digest != ZERO_DIGEST:
                    self.parts.append(
                        Changed(piece.start + number, digest, piece.file, piece.chunk + number, None)
                    )
        self._add_same(piece.start + done, piece.length - done, piece)

    def add_deltas(self, data: bytes, contents: PlacedContents) -> None:
        """Find the deltas of what has changed, now that the bytes are there."""
        for place, part in enumerate(self.parts):
            if isinstance(part, Changed):
                at = (part.start - self._first) * CHUNK_BYTES
                found = _delta_to_whole(data[at : at + CHUNK_BYTES], part.file, part.chunk, contents)
                self.parts[place] = part._replace(delta=found)

    def _note(self, start: int, digests: list[bytes]) -> None:
        at = start - self._first
        self.digests[at : at + len(digests)] = digests

    def _add_fresh(self, start: int, digests: list[bytes]) -> None:
        """Runs of chunks that are not zeros."""
        if ZERO_DIGEST not in digests:
            if digests:
                self.parts.append(Fresh(start, len(digests)))
            return
        begin = None
        for number, digest in enumerate(digests):
            if digest == ZERO_DIGEST:
                if begin is not None:
                    self.parts.append(Fresh(start + begin, number - begin))
                    begin = None
            elif begin is None:
                begin = number
        if begin is not None:
            self.parts.append(Fresh(start + begin, len(digests) - begin))

    def _add_same(self, start: int, count: int, piece: Aligned) -> None:
        if count > 0:
            self.parts.append(Same(start, count, piece.file, piece.chunk + start - piece.start))


def _worthy(bits: int, before: bytes | bytearray, listed: bytes) -> bytes | None:
    """The bits in which a chunk differs, as a delta; None where that is no use, or what it is to is damaged."""
    if bits.bit_count() > _DELTA_BITS_MAX or before == ZERO_CHUNK:
        return None
    return bits.to_bytes(CHUNK_BYTES, "little") if hashlib.sha256(before).digest() == listed else None


def _delta_to_whole(new: bytes, file: PlacedFile, chunk: int, contents: PlacedContents) -> bytes | None:
    """The delta of a chunk to the whole one that the parent's is made of; None also where that cannot be read."""
    try:
        before = contents.layers(file.layers[:1], chunk, 1)
        listed = bytes(contents.layer_digests(file.layers[:1], chunk, 1))
    except CkptError:
        return None
    bits = int.from_bytes(new, "little") ^ int.from_bytes(before, "little")
    return _worthy(bits, before, listed)


def split_digests(joined: bytes | bytearray) -> list[bytes]:
    """Digests that stand one after the other."""
    raw = bytes(joined)
    return [raw[at : at + DIGEST_BYTES] for at in range(0, len(raw), DIGEST_BYTES)]


def is_zeros(data: bytes) -> bool:
    """Whether these at most PIECE_CHUNKS chunks are zeros alone."""
    # Most are not, and show it at once.
    if data[:_LOOK_BYTES] != _ZEROS[:_LOOK_BYTES]:
        return False
    return not different_parts(_ZEROS, 0, data, range(0, len(data), len(data)))
