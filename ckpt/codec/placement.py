"""A placement: where one store keeps the chunks of one checkpoint.

A file has layers. A run of a layer says that `count` chunks of the file, from `start` on, lie in a pack one
after the other; a chunk's bytes are those of all layers that have it, XORed; what no layer has is zeros.

Rules: F87 to F93 of images/FORMAT.md. Nothing here needs to be believed: what is read is compared with the
root that the manifest names.
"""

from __future__ import annotations

import struct
from array import array
from bisect import bisect_right
from dataclasses import dataclass, field, replace
from typing import Any, Final

from ckpt.codec.columns import (
    column_bytes,
    positions,
    read_column,
    steps_between,
    unzigzag,
    write_column,
    zigzag,
)
from ckpt.codec.frame import Kind
from ckpt.codec.limits import (
    ADDRESS_RUNS_MAX,
    BLOB_CHUNKS_MAX,
    COMPONENT_BYTES_MAX,
    LAYERS_MAX,
    PACK_BLOBS_MAX,
    PACK_BYTES_MAX,
)
from ckpt.errors import ObjectCorrupt
from ckpt.model.checkpoint import AddressRun
from ckpt.units import CHUNK_BYTES, ByteCount, CheckpointId, Digest

_HEAD: Final = struct.Struct(">32sII")
_PACK: Final = struct.Struct(">32sII")
_FILE: Final = struct.Struct(">32sQHI")
_RUNS: Final = struct.Struct(">I")
_SPACE: Final = struct.Struct(">HI")

_CHUNK_NUMBERS: Final = BLOB_CHUNKS_MAX * PACK_BLOBS_MAX
_PAGES_MAX: Final = 1 << 52  # of a 64-bit address space
_CHUNKS_MAX: Final = 1 << 32


@dataclass(frozen=True, slots=True, kw_only=True)
class PackRef:
    """A pack, and what is needed to read its list at once: the sizes of the object and of the list in it."""

    name: Digest
    object_bytes: ByteCount
    list_bytes: ByteCount


@dataclass(frozen=True, slots=True)
class Layer:
    """Runs in the order of `starts`, none over another. `packs` are places in Placement.packs."""

    starts: array[int] = field(default_factory=lambda: array("I"))
    counts: array[int] = field(default_factory=lambda: array("I"))
    packs: array[int] = field(default_factory=lambda: array("I"))
    chunks: array[int] = field(default_factory=lambda: array("I"))

    def add(self, start: int, count: int, pack: int, chunk: int) -> None:
        """Add a run behind all others; it becomes part of the last one if it goes on from there."""
        if self.starts:
            before = self.counts[-1]
            goes_on = self.starts[-1] + before == start and self.packs[-1] == pack
            # Chunks of one blob alone follow each other in a run.
            if goes_on and self.chunks[-1] + before == chunk and chunk % BLOB_CHUNKS_MAX:
                self.counts[-1] += count
                return
        self.starts.append(start)
        self.counts.append(count)
        self.packs.append(pack)
        self.chunks.append(chunk)

    def within(self, start: int, count: int) -> list[tuple[int, int, int, int]]:
        """The parts of runs between `start` and `start + count`: (start, count, pack, chunk)."""
        end = start + count
        starts, counts, packs, chunks = self.starts, self.counts, self.packs, self.chunks
        found = []
        for number in range(max(0, bisect_right(starts, start) - 1), len(starts)):
            first = starts[number]
            if first >= end:
                break
            length, chunk = counts[number], chunks[number]
            if first < start:
                length -= start - first
                chunk += start - first
                first = start
            if first + length > end:
                length = end - first
            if length > 0:
                found.append((first, length, packs[number], chunk))
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedFile:
    """Where the chunks of one file lie, and what addresses they have."""

    root: Digest
    size_bytes: ByteCount
    layers: tuple[Layer, ...]
    addresses: tuple[AddressRun, ...]

    @property
    def chunk_count(self) -> int:
        """How many chunks the file has; the last one is filled up with zeros."""
        return -(-self.size_bytes // CHUNK_BYTES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where the files of a checkpoint lie; each content once, by its root."""

    checkpoint: CheckpointId
    packs: tuple[PackRef, ...]
    files: tuple[PlacedFile, ...]

    def with_packs(self, packs: tuple[PackRef, ...]) -> Placement:
        """The same with this table of packs."""
        return replace(self, packs=packs)

    def encode(self) -> bytes:
        """The placement's plain bytes."""
        parts = [_HEAD.pack(bytes.fromhex(self.checkpoint), len(self.packs), len(self.files))]
        parts += [
            _PACK.pack(bytes.fromhex(pack.name), pack.object_bytes, pack.list_bytes) for pack in self.packs
        ]
        for file in self.files:
            spaces = _by_space(file.addresses)
            parts.append(_FILE.pack(bytes.fromhex(file.root), file.size_bytes, len(file.layers), len(spaces)))
            for layer in file.layers:
                parts += _encode_layer(layer)
            for name, runs in spaces.items():
                parts += _encode_space(name, runs)
        return b"".join(parts)


def decode_placement(content: bytes, name: str) -> Placement:
    """The placement that the errors call `name`.

    Raises:
        ObjectCorrupt: not what the format says; says where.
    """
    reader = _Reader(content, name)
    checkpoint, pack_count, file_count = reader.unpack(_HEAD)
    reader.expect(pack_count * _PACK.size + file_count * _FILE.size)
    packs = []
    for _ in range(pack_count):
        digest, object_bytes, list_bytes = reader.unpack(_PACK)
        if not list_bytes < object_bytes <= PACK_BYTES_MAX:
            raise reader.refuse(f"a pack of {object_bytes} bytes with a list of {list_bytes}")
        packs.append(
            PackRef(
                name=Digest(digest.hex()),
                object_bytes=ByteCount(object_bytes),
                list_bytes=ByteCount(list_bytes),
            )
        )
    files = tuple(_decode_file(reader, pack_count) for _ in range(file_count))
    reader.end()
    return Placement(checkpoint=CheckpointId(checkpoint.hex()), packs=tuple(packs), files=files)


class _Reader:
    """The bytes of a placement, from front to back; nothing is taken that is not there."""

    def __init__(self, content: bytes, name: str) -> None:
        self._content = content
        self._offset = 0
        self._name = name

    def expect(self, count: int) -> None:
        """Refuse a number of bytes that the rest does not have."""
        left = len(self._content) - self._offset
        if count > left:
            raise self.refuse(f"{count} bytes belong there, and {left} are left")

    def take(self, count: int) -> bytes:
        """The next bytes."""
        self.expect(count)
        self._offset += count
        return self._content[self._offset - count : self._offset]

    def unpack(self, fields: struct.Struct) -> tuple[Any, ...]:
        """The next fields."""
        return fields.unpack(self.take(fields.size))

    def column(self, count: int, code: str) -> array[int]:
        """The next column."""
        return read_column(self.take(column_bytes(count, code)), count, code)

    def end(self) -> None:
        """Refuse anything that follows."""
        if self._offset != len(self._content):
            raise self.refuse(f"{len(self._content) - self._offset} bytes too many at its end")

    def refuse(self, reason: str) -> ObjectCorrupt:
        """The error for what was read last."""
        return ObjectCorrupt(
            kind=str(Kind.PLACEMENT), name=self._name, reason=f"before byte {self._offset}: {reason}"
        )


def _decode_file(reader: _Reader, pack_count: int) -> PlacedFile:
    root, size_bytes, layer_count, space_count = reader.unpack(_FILE)
    chunk_count = -(-size_bytes // CHUNK_BYTES)
    if layer_count > LAYERS_MAX or chunk_count >= _CHUNKS_MAX:
        raise reader.refuse(f"a file of {size_bytes} bytes in {layer_count} layers")
    layers = tuple(_decode_layer(reader, pack_count, chunk_count) for _ in range(layer_count))
    addresses: list[AddressRun] = []
    for _ in range(space_count):
        addresses += _decode_space(reader, chunk_count)
    return PlacedFile(
        root=Digest(root.hex()), size_bytes=ByteCount(size_bytes), layers=layers, addresses=tuple(addresses)
    )


def _encode_layer(layer: Layer) -> list[bytes]:
    return [
        _RUNS.pack(len(layer.starts)),
        write_column(steps_between(layer.starts, layer.counts), "I"),
        write_column(layer.counts, "I"),
        write_column(layer.packs, "I"),
        write_column(zigzag(steps_between(layer.chunks, layer.counts)), "I"),
    ]


def _decode_layer(reader: _Reader, pack_count: int, chunk_count: int) -> Layer:
    (count,) = reader.unpack(_RUNS)
    reader.expect(4 * column_bytes(count, "I"))
    gaps, counts, packs, steps = (reader.column(count, "I") for _ in range(4))
    starts = array("Q", positions(gaps, counts))
    chunks = array("q", positions(unzigzag(steps), counts))
    if count:
        if starts[-1] + counts[-1] > chunk_count or min(counts) == 0:
            raise reader.refuse(f"runs up to chunk {starts[-1] + counts[-1]} of {chunk_count}")
        if max(packs) >= pack_count:
            raise reader.refuse(f"pack {max(packs)} of {pack_count}")
        if max(counts) > BLOB_CHUNKS_MAX or min(chunks) < 0 or max(chunks) >= _CHUNK_NUMBERS:
            raise reader.refuse(f"chunk {max(chunks)} of a pack, where {_CHUNK_NUMBERS} is the most")
    return Layer(starts=array("I", starts), counts=counts, packs=packs, chunks=array("I", chunks))


def fits(run: AddressRun) -> bool:
    """Whether a placement can hold the run: its pages exist, and its space has a name."""
    try:
        name_bytes = len(run.space.encode())
    except UnicodeEncodeError:
        return False
    pages = run.page >= 0 and run.count > 0 and run.page + run.count <= _PAGES_MAX
    return pages and run.chunk >= 0 and 0 < name_bytes <= COMPONENT_BYTES_MAX


def _by_space(addresses: tuple[AddressRun, ...]) -> dict[str, list[AddressRun]]:
    found: dict[str, list[AddressRun]] = {}
    for run in addresses:
        found.setdefault(run.space, []).append(run)
    return found


def _encode_space(name: str, runs: list[AddressRun]) -> list[bytes]:
    called = name.encode()
    lengths = array("Q", (run.count for run in runs))
    return [
        _SPACE.pack(len(called), len(runs)),
        called,
        write_column(zigzag(steps_between((run.page for run in runs), lengths)), "Q"),
        write_column(zigzag(steps_between((run.chunk for run in runs), lengths)), "Q"),
        write_column(lengths, "Q"),
    ]


def _decode_space(reader: _Reader, chunk_count: int) -> list[AddressRun]:
    length, count = reader.unpack(_SPACE)
    if not 0 < length <= COMPONENT_BYTES_MAX:
        raise reader.refuse(f"an address space with a name of {length} bytes")
    try:
        space = reader.take(length).decode()
    except UnicodeDecodeError:
        raise reader.refuse("an address space whose name is no UTF-8") from None
    reader.expect(3 * column_bytes(count, "Q"))
    if count > ADDRESS_RUNS_MAX:
        raise reader.refuse(f"{count} address runs, and {ADDRESS_RUNS_MAX} are the most")
    page_steps, chunk_steps, counts = (reader.column(count, "Q") for _ in range(3))
    found = []
    pages, chunks = positions(unzigzag(page_steps), counts), positions(unzigzag(chunk_steps), counts)
    for page, chunk, size in zip(pages, chunks, counts, strict=True):
        if not (0 <= page < _PAGES_MAX and chunk >= 0 and size > 0 and chunk + size <= chunk_count):
            raise reader.refuse(f"page {page} as chunk {chunk} of {chunk_count}, and {size - 1} after it")
        found.append(AddressRun(space=space, page=page, chunk=chunk, count=size))
    return found
