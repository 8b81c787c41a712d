"""Placements: what is refused, and where; how runs grow and are found."""

from __future__ import annotations

import struct
from array import array
from dataclasses import replace

import pytest

from ckpt.codec.limits import BLOB_CHUNKS_MAX, LAYERS_MAX, PACK_BYTES_MAX
from ckpt.codec.placement import Layer, PackRef, PlacedFile, Placement, decode_placement
from ckpt.errors import ObjectCorrupt
from ckpt.model.checkpoint import AddressRun
from ckpt.units import CHUNK_BYTES, ByteCount, CheckpointId, Digest

PACK = PackRef(name=Digest("cd" * 32), object_bytes=ByteCount(5000), list_bytes=ByteCount(500))
EMPTY = PlacedFile(
    root=Digest("ef" * 32), size_bytes=ByteCount(20 * CHUNK_BYTES - 1), layers=(), addresses=()
)
PLACEMENT = Placement(checkpoint=CheckpointId("ab" * 32), packs=(PACK,), files=(EMPTY,))


def a_layer(*runs: tuple[int, int, int, int]) -> Layer:
    return Layer(*(array("I", column) for column in zip(*runs, strict=True)))


def with_layers(*layers: Layer) -> bytes:
    return replace(PLACEMENT, files=(replace(EMPTY, layers=layers),)).encode()


def with_addresses(*runs: AddressRun) -> bytes:
    return replace(PLACEMENT, files=(replace(EMPTY, addresses=runs),)).encode()


def run(page: int, chunk: int, count: int, space: str = "pagemap-1") -> AddressRun:
    return AddressRun(space=space, page=page, chunk=chunk, count=count)


def test_runs_that_go_on_become_one_and_never_leave_their_blob() -> None:
    layer = Layer()
    layer.add(0, 2, 0, 254)
    layer.add(2, 1, 0, 256)  # the next blob
    layer.add(3, 4, 0, 257)
    layer.add(7, 1, 1, 261)  # another pack
    layer.add(9, 1, 1, 262)  # not the next chunk
    assert layer == a_layer((0, 2, 0, 254), (2, 5, 0, 256), (7, 1, 1, 261), (9, 1, 1, 262))


@pytest.mark.parametrize(
    ("start", "count", "expected"),
    [
        (0, 20, [(2, 3, 0, 10), (5, 1, 0, 50), (8, 4, 0, 20)]),
        (3, 1, [(3, 1, 0, 11)]),
        (4, 5, [(4, 1, 0, 12), (5, 1, 0, 50), (8, 1, 0, 20)]),
        (6, 2, []),
        (0, 2, []),
        (12, 9, []),
        (11, 9, [(11, 1, 0, 23)]),
    ],
)
def test_the_parts_of_runs_between_two_chunks_are_found(
    start: int, count: int, expected: list[tuple[int, int, int, int]]
) -> None:
    layer = a_layer((2, 3, 0, 10), (5, 1, 0, 50), (8, 4, 0, 20))
    assert list(layer.within(start, count)) == expected
    assert list(Layer().within(start, count)) == []


def test_all_that_a_file_may_have_reads_back() -> None:
    layers = (a_layer((0, 16, 0, 0), (19, 1, 0, 16383)), a_layer((5, 1, 0, 300)), Layer())
    addresses = (run(0, 0, 20), run((1 << 52) - 1, 19, 1), run(5, 3, 2, space="é"))
    placement = replace(PLACEMENT, files=(replace(EMPTY, layers=layers, addresses=addresses), EMPTY))
    assert decode_placement(placement.encode(), "x") == placement


def test_every_cut_and_everything_too_much_is_found() -> None:
    whole = replace(
        PLACEMENT,
        files=(replace(EMPTY, layers=(a_layer((0, 16, 0, 0)),), addresses=(run(9, 0, 20),)), EMPTY),
    ).encode()
    for size in range(len(whole)):
        with pytest.raises(ObjectCorrupt):
            decode_placement(whole[:size], "x")
    with pytest.raises(ObjectCorrupt, match="1 bytes too many at its end"):
        decode_placement(whole + b"x", "x")


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (a_layer((0, 21, 0, 0)), "runs up to chunk 21 of 20"),
        (a_layer((20, 1, 0, 0)), "runs up to chunk 21 of 20"),
        (a_layer((0, 5, 0, 0), (5, 0, 0, 9), (6, 1, 0, 9)), "runs up to chunk 7 of 20"),
        (a_layer((0, 5, 1, 0)), "pack 1 of 1"),
        (a_layer((0, 5, 0, 16384)), "chunk 16384 of a pack"),
    ],
)
def test_runs_that_cannot_be_are_refused(layer: Layer, reason: str) -> None:
    with pytest.raises(ObjectCorrupt, match=reason) as caught:
        decode_placement(with_layers(layer), "ab")
    assert "placement ab" in caught.value.message
    assert "before byte" in caught.value.message


def test_a_run_longer_than_a_blob_is_refused() -> None:
    size = ByteCount(1000 * CHUNK_BYTES)
    long = replace(EMPTY, size_bytes=size, layers=(a_layer((0, BLOB_CHUNKS_MAX + 1, 0, 0)),))
    with pytest.raises(ObjectCorrupt):
        decode_placement(replace(PLACEMENT, files=(long,)).encode(), "x")


def test_more_layers_than_may_be_are_refused() -> None:
    assert decode_placement(with_layers(*[Layer()] * LAYERS_MAX), "x")
    with pytest.raises(ObjectCorrupt, match=f"in {LAYERS_MAX + 1} layers"):
        decode_placement(with_layers(*[Layer()] * (LAYERS_MAX + 1)), "x")


@pytest.mark.parametrize(
    "wrong", [run(0, 0, 0), run(0, 20, 1), run(0, 19, 2), run(1 << 52, 0, 1), run(0, 0, 1 << 63)]
)
def test_addresses_that_cannot_be_are_refused(wrong: AddressRun) -> None:
    with pytest.raises(ObjectCorrupt, match=f"page {wrong.page} as chunk {wrong.chunk} of 20"):
        decode_placement(with_addresses(wrong), "x")


@pytest.mark.parametrize("space", ["", "x" * 256])
def test_a_space_without_a_proper_name_is_refused(space: str) -> None:
    with pytest.raises(ObjectCorrupt, match=f"an address space with a name of {len(space)} bytes"):
        decode_placement(with_addresses(run(0, 0, 1, space=space)), "x")


def test_a_space_whose_name_is_no_text_is_refused() -> None:
    content = with_addresses(run(0, 0, 1, space="AAAA")).replace(b"AAAA", b"AA\xff\xfe")
    with pytest.raises(ObjectCorrupt, match="no UTF-8"):
        decode_placement(content, "x")


@pytest.mark.parametrize(
    ("object_bytes", "list_bytes"), [(500, 500), (100, 500), (PACK_BYTES_MAX + 1, 500), (0, 0)]
)
def test_a_pack_of_a_size_that_cannot_be_is_refused(object_bytes: int, list_bytes: int) -> None:
    pack = replace(PACK, object_bytes=ByteCount(object_bytes), list_bytes=ByteCount(list_bytes))
    with pytest.raises(ObjectCorrupt, match=f"a pack of {object_bytes} bytes with a list of {list_bytes}"):
        decode_placement(replace(PLACEMENT, packs=(pack,)).encode(), "x")


@pytest.mark.parametrize("size", [1 << 44, (1 << 64) - 1])
def test_a_file_larger_than_can_be_is_refused(size: int) -> None:
    with pytest.raises(ObjectCorrupt, match=f"a file of {size} bytes"):
        decode_placement(
            replace(PLACEMENT, files=(replace(EMPTY, size_bytes=ByteCount(size)),)).encode(), "x"
        )


@pytest.mark.parametrize("counts", [(0xFFFFFFFF, 0), (0, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF)])
def test_counts_that_lie_are_refused_at_once(counts: tuple[int, int]) -> None:
    with pytest.raises(ObjectCorrupt, match="bytes belong there, and 100 are left"):
        decode_placement(struct.pack(">32sII", bytes(32), *counts) + bytes(100), "x")
