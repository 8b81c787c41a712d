"""Damage to placements, and placements that lie: nothing of what they say is believed."""

from __future__ import annotations

import struct
from array import array
from collections.abc import Callable
from dataclasses import replace

from raw import put_placement, put_plain
from recipes import (
    CORRUPT,
    FORMAT,
    MISSING,
    Base,
    Change,
    Expected,
    Sets,
    cut,
    delete,
    flip,
    newer_frame,
    put,
    swap,
    told,
)

from ckpt.codec.columns import write_column, zigzag
from ckpt.codec.frame import HEADER_BYTES, Compression, Kind, frame
from ckpt.codec.limits import PLACEMENT_BYTES_MAX
from ckpt.codec.placement import Layer, PackRef, PlacedFile, Placement
from ckpt.store import layout
from ckpt.units import ByteCount, CheckpointId, Digest

PAGES = "pages-1.img"


def placement_sets(base: Base) -> int:
    sets = Sets(base)
    _broken(base, sets)
    _malformed(base, sets)
    _lying(base, sets)
    return sets.write("placement")


def _broken(base: Base, sets: Sets) -> None:
    name, other = base.placement_name(base.newest), base.placement_name(base.older)
    size = len(base.raw(name))

    def add(which: str, about: str, change: Change, error: Expected, says: str) -> None:
        _add_unreadable(sets, which, about, change, error | {"says": says}, checkpoint=base.newest)

    add("gone", "a placement is deleted", delete(name), MISSING, f"has no placement {base.newest}")
    add("empty", "a placement has no bytes", cut(name, 0), CORRUPT, "0 bytes are too few")
    add("cut", "a placement is cut off", cut(name, size - 1), CORRUPT, "bytes should follow the header")
    add(
        "header-flipped", "a bit of the header is flipped", flip(name, 13), CORRUPT, "check sum of its header"
    )
    add(
        "body-flipped",
        "a bit of the body is flipped",
        flip(name, size // 2),
        CORRUPT,
        "check sum of its body",
    )
    newer = put(name, newer_frame(base.raw(name)))
    add("newer-frame", "version 2 of the frame", newer, FORMAT, "version 2 of the frame")
    add(
        "is-a-receipt",
        "a receipt in its place",
        put(name, base.raw(layout.receipt(base.newest))),
        CORRUPT,
        "b'RCPT'",
    )
    expected = CORRUPT | {"says": "it belongs to"}
    sets.add(
        "placement-swapped",
        "the placements of two checkpoints changed places",
        [swap(name, other)],
        expect={"restore": expected, "sweep": expected},
        verify=[told(CORRUPT, found, "it belongs to") for found in (base.older, base.newest)],
        cure=[base.older, base.newest],
    )
    sets.add(
        "placement-older-beside",
        "an older placement beside the one that counts, as a crash may leave it",
        [
            put_plain(
                base, base.placement_name(base.newest, 2), Kind.PLACEMENT, base.plain(name, Kind.PLACEMENT)
            )
        ],
    )
    newest = put(base.placement_name(base.newest, 2), b"half of it")
    add(
        "newest-cut",
        "the newest of two placements is damaged: the older does not count",
        newest,
        CORRUPT,
        "10 bytes",
    )
    gone = CheckpointId(Digest("ab" * 32))
    sets.add(
        "placement-of-nothing",
        "a placement without a manifest, as a crash may leave it",
        [put_placement(base, base.placement(base.newest), gone)],
    )


def _add_unreadable(
    sets: Sets, which: str, about: str, change: Change, expected: Expected, *, checkpoint: str
) -> None:
    """A placement that cannot be read: what the checkpoint needs is not known, so that no sweep dares."""
    sets.add(
        f"placement-{which}",
        about,
        [change],
        expect={"restore": expected, "sweep": expected},
        verify=[told(expected, checkpoint, expected["says"])],
        cure=[checkpoint],
    )


def _malformed(base: Base, sets: Sets) -> None:
    """Placements that break a rule of their own."""
    name = base.placement_name(base.newest)
    whole = base.placement(base.newest)
    encoded = whole.encode()
    head = struct.Struct(">32sII")
    checkpoint = bytes.fromhex(base.newest)
    after_packs = head.size + 40 * len(whole.packs)

    def add(which: str, about: str, plain: bytes, says: str) -> None:
        change = put_plain(base, name, Kind.PLACEMENT, plain)
        _add_unreadable(sets, which, about, change, CORRUPT | {"says": says}, checkpoint=base.newest)

    def with_pack(object_bytes: int, list_bytes: int) -> bytes:
        pack = struct.pack(">32sII", bytes(32), object_bytes, list_bytes)
        return head.pack(checkpoint, 1, 0) + pack

    def with_file(
        layers: bytes = b"", spaces: bytes = b"", *, size: int = 40960, counts: tuple[int, int] = (1, 0)
    ) -> bytes:
        packs = encoded[head.size : after_packs]
        file = struct.pack(">32sQHI", bytes(32), size, *counts)
        return head.pack(checkpoint, len(whole.packs), 1) + packs + file + layers + spaces

    def runs(*runs: tuple[int, int, int, int]) -> bytes:
        """Runs of a layer: gap, count, pack, step."""
        columns = [list(column) for column in zip(*runs, strict=True)]
        columns[3] = zigzag(columns[3])
        return struct.pack(">I", len(runs)) + b"".join(write_column(column, "I") for column in columns)

    def space(called: bytes, *runs: tuple[int, int, int]) -> bytes:
        """Runs of an address space: steps of page and chunk, count."""
        pages, chunks, counts = ([run[place] for run in runs] for place in range(3))
        columns = (zigzag(pages), zigzag(chunks), counts)
        return (
            struct.pack(">HI", len(called), len(runs))
            + called
            + b"".join(write_column(c, "Q") for c in columns)
        )

    huge = 0xFFFFFFFF
    add("short", "fewer bytes than its head has", encoded[:20], "40 bytes belong there, and 20 are left")
    add("with-a-tail", "bytes behind it", encoded + b"x", "1 bytes too many at its end")
    add("huge-packs", "four thousand million packs", head.pack(checkpoint, huge, 0), "bytes belong there")
    add("huge-files", "four thousand million files", head.pack(checkpoint, 0, huge), "bytes belong there")
    add("huge-runs", "a layer of as many runs", with_file(struct.pack(">I", huge)), "bytes belong there")
    add(
        "huge-addresses",
        "an address space of as many runs",
        with_file(spaces=struct.pack(">HI", 1, huge) + b"x", counts=(0, 1)),
        "bytes belong there",
    )
    add("huge-pack", "a pack of 4 GiB", with_pack(huge, 100), "a pack of 4294967295 bytes with a list of 100")
    add(
        "huge-list",
        "a list that is longer than its pack",
        with_pack(1000, 1000),
        "a pack of 1000 bytes with a list",
    )
    add(
        "huge-file",
        "a file of 16 EiB",
        with_file(size=(1 << 64) - 1, counts=(0, 0)),
        "a file of 18446744073709551615",
    )
    add(
        "too-many-layers",
        "a file of 65 layers",
        with_file(runs((0, 1, 0, 0)) * 65, counts=(65, 0)),
        "in 65 layers",
    )
    add("run-of-nothing", "a run of no chunks", with_file(runs((0, 0, 0, 0))), "runs up to chunk 0 of 10")
    add(
        "run-too-far",
        "a run behind the end of the file",
        with_file(runs((9, 2, 0, 0))),
        "runs up to chunk 11 of 10",
    )
    add(
        "run-too-long",
        "a run of more than a blob has",
        with_file(runs((0, 257, 0, 0)), size=1 << 21),
        "of a pack",
    )
    add(
        "runs-overlap",
        "a gap of -1, as a number without sign",
        with_file(runs((0, 2, 0, 0), (huge, 2, 0, 0))),
        "runs up",
    )
    add("run-of-no-pack", "a pack that its table lacks", with_file(runs((0, 1, 2, 0))), "pack 2 of 2")
    add(
        "chunk-negative",
        "chunk -1 of a pack",
        with_file(runs((0, 1, 0, -1))),
        "of a pack, where 16384 is the most",
    )
    add("chunk-too-high", "chunk 16384 of a pack", with_file(runs((0, 1, 0, 16384))), "chunk 16384 of a pack")
    add(
        "space-unnamed",
        "an address space without a name",
        with_file(spaces=space(b""), counts=(0, 1)),
        "of 0 bytes",
    )
    add(
        "space-no-utf8",
        "a name that is no text",
        with_file(spaces=space(b"\xff"), counts=(0, 1)),
        "is no UTF-8",
    )
    add(
        "page-too-high",
        "a page behind the end of the address space",
        with_file(spaces=space(b"x", (1 << 52, 0, 1)), counts=(0, 1)),
        "page 4503599627370496 as chunk 0",
    )
    add(
        "page-of-no-chunk",
        "a page that is a chunk behind the end of the file",
        with_file(spaces=space(b"x", (0, 10, 1)), counts=(0, 1)),
        "as chunk 10 of 10",
    )
    bomb = frame(Kind.PLACEMENT, Compression.NONE, PLACEMENT_BYTES_MAX + 1, b"x")
    add_huge = CORRUPT | {"says": f"it claims {PLACEMENT_BYTES_MAX + 1}"}
    about = "it claims more than the limit"
    _add_unreadable(sets, "huge", about, put(name, bomb), add_huge, checkpoint=base.newest)


def _lying(base: Base, sets: Sets) -> None:
    """Placements that are well made, and wrong: what they give is compared with the root of each file."""
    whole = base.placement(base.newest)
    first, second = whole.packs
    root = next(file.root for file in base.checkpoint.files if file.name == PAGES)
    pages = next(file for file in whole.files if file.root == root)

    def add(
        which: str,
        about: str,
        placement: Placement,
        error: Expected,
        says: str,
        *,
        subject: str = base.newest,
        more: tuple[Expected, ...] = (),
        spoils: bool = False,
    ) -> None:
        sets.add(
            f"placement-{which}",
            about,
            [put_placement(base, placement)],
            expect={"restore": error | {"says": says}},
            verify=[told(error, subject, says), *more],
            spoils=spoils,
        )

    def with_pages(change: Callable[[PlacedFile], PlacedFile]) -> Placement:
        return replace(whole, files=tuple(change(file) if file is pages else file for file in whole.files))

    def with_layers(*layers: Layer) -> Placement:
        return with_pages(lambda file: replace(file, layers=layers))

    def with_pack(ref: PackRef) -> Placement:
        return replace(whole, packs=(first, ref))

    below, delta = pages.layers
    add(
        "without-a-file",
        "it does not say where a file is",
        replace(whole, files=tuple(file for file in whole.files if file is not pages)),
        CORRUPT,
        f"it does not say where {PAGES} is",
    )
    others = "the chunks that it names give the root"
    add("layer-gone", "the layer of deltas is left out", with_layers(below), CORRUPT, others)
    moved = Layer(starts=below.starts, counts=below.counts, packs=below.packs, chunks=array("I", [9]))
    add("run-moved", "a run that begins a chunk too late", with_layers(moved, delta), CORRUPT, others)
    turned = with_layers(delta, below)
    add("layers-turned", "the two layers changed places", turned, CORRUPT, others, spoils=True)
    digest = "has the digest"
    add("base-gone", "deltas without what is below them", with_layers(Layer(), delta), CORRUPT, others)
    twice = with_layers(below, delta, delta)
    add("delta-twice", "a layer of deltas on top of itself", twice, CORRUPT, digest, subject=second.name)
    loop = with_layers(delta, below, delta)
    add(
        "layers-in-a-ring",
        "deltas below and above what they change",
        loop,
        CORRUPT,
        digest,
        subject=second.name,
    )
    shorter = Layer(starts=below.starts, counts=array("I", [10]), packs=below.packs, chunks=below.chunks)
    add(
        "chunks-gone",
        "chunks that are left out: zeros where there are none",
        with_layers(shorter, delta),
        CORRUPT,
        others,
    )
    outside = Layer(
        starts=array("I", [0]), counts=array("I", [20]), packs=array("I", [0]), chunks=array("I", [30])
    )
    add(
        "run-too-long-for-its-blob",
        "chunks that the pack does not have",
        with_layers(outside),
        CORRUPT,
        "it has no chunks from 30 to 49",
        subject=first.name,
    )
    add(
        "pack-of-nothing",
        "a pack that is not there",
        with_pack(replace(second, name=Digest("ab" * 32))),
        MISSING,
        f"has no pack {'ab' * 32}",
        subject="ab" * 32,
    )
    add(
        "pack-exchanged",
        "the name of another pack",
        with_pack(first),
        CORRUPT,
        others,
        more=(told(CORRUPT, first.name, "it has no chunks from 256 to 257"),),
    )
    add(
        "pack-size",
        "another size of a pack",
        with_pack(replace(second, object_bytes=ByteCount(second.object_bytes - 1))),
        CORRUPT,
        "were put there",
        subject=second.name,
    )
    add(
        "list-size",
        "another size of a pack's list",
        with_pack(replace(second, list_bytes=ByteCount(second.list_bytes - 1))),
        CORRUPT,
        "its end does not say that its list has",
        subject=second.name,
    )
    add(
        "list-of-nothing",
        "a list of no bytes",
        with_pack(replace(second, list_bytes=ByteCount(0))),
        CORRUPT,
        "its end does not say that its list has",
        subject=second.name,
    )
    name = base.placement_name(base.older)
    older = base.placement(base.older)
    only_a_list = replace(first, object_bytes=ByteCount(HEADER_BYTES + first.list_bytes))
    says = "were put there"
    sets.add(
        "placement-pack-of-a-list-alone",
        "sizes of a pack that leave nothing for its blobs",
        [put_plain(base, name, Kind.PLACEMENT, replace(older, packs=(only_a_list,)).encode())],
        expect={"restore": CORRUPT | {"says": says}},
        verify=[told(CORRUPT, first.name, says)],
        restore=base.older,
    )
