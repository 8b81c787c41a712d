"""Damage to packs and indexes, packs that lie, and indexes that lie."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import replace

import zstandard
from raw import changed, put_manifest, put_placement, put_plain, put_signature
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

from ckpt.codec.frame import HEADER_BYTES, SALT_BYTES, Compression, Kind, frame, pack_header
from ckpt.codec.hooks import encode_index
from ckpt.codec.objects import RootDigest, digest_of
from ckpt.codec.pack import TRAILER, BlobEntry, BlobKind, PackList
from ckpt.codec.placement import Layer, PackRef, PlacedFile, Placement
from ckpt.store import layout
from ckpt.units import CHUNK_BYTES, ByteCount, Digest

SALT = bytes(range(SALT_BYTES))
PLAIN = (b"images: two chunks " * CHUNK_BYTES)[: 2 * CHUNK_BYTES]


def pack_sets(base: Base) -> int:
    sets = Sets(base)
    _broken(base, sets)
    _lying(base, sets)
    return sets.write("pack")


def _broken(base: Base, sets: Sets) -> None:
    first, second = base.pack_names()
    name = layout.pack(second)
    content = base.raw(name)
    size = len(content)
    (list_bytes,) = TRAILER.unpack(content[-TRAILER.size :])

    def add(
        which: str, about: str, change: Change, error: Expected, says: str, *, subject: Digest = second
    ) -> None:
        sets.add(
            f"pack-{which}",
            about,
            [change],
            expect={"restore": error | {"says": says}},
            verify=[told(error, subject, says)],
        )

    add("gone", "the pack of deltas is deleted", delete(name), MISSING, f"has no pack {second}")
    base_gone = delete(layout.pack(first))
    add(
        "of-both-gone",
        "the pack that both checkpoints need is deleted",
        base_gone,
        MISSING,
        f"pack {first}",
        subject=first,
    )
    add("empty", "a pack has no bytes", cut(name, 0), CORRUPT, "0 bytes are too few")
    add(
        "cut", "a pack is cut off", cut(name, size - 1), CORRUPT, f"{size - HEADER_BYTES} bytes should follow"
    )
    add(
        "header-flipped", "a bit of the header is flipped", flip(name, 13), CORRUPT, "check sum of its header"
    )
    add(
        "salt-flipped",
        "a bit of the salt is flipped",
        flip(name, 40),
        CORRUPT,
        "the digest of its list is another",
    )
    add("blob-flipped", "a bit of a blob is flipped", flip(name, 300), CORRUPT, "zstd says")
    listed = flip(name, size - TRAILER.size - list_bytes // 2)
    add("list-flipped", "a bit of the list is flipped", listed, CORRUPT, "the digest of its list is another")
    trailer = flip(name, size - 1)
    says = "its end does not say that its list has"
    add("trailer-flipped", "a bit of the size of the list is flipped", trailer, CORRUPT, says)
    newer = "version 2 of the frame"
    sets.add(
        "pack-newer-frame",
        newer,
        [put(name, newer_frame(content))],
        expect={"restore": FORMAT | {"says": newer}},
        verify=[told(FORMAT, found, newer) for found in (second, base.newest)],
    )
    add(
        "is-a-receipt",
        "a receipt in its place",
        put(name, base.raw(layout.receipt(base.newest))),
        CORRUPT,
        "b'RCPT'",
    )
    says = "bytes, and"
    sets.add(
        "pack-swapped",
        "two packs changed places",
        [swap(name, layout.pack(first))],
        expect={"restore": CORRUPT | {"says": says}},
        verify=[told(CORRUPT, found, says) for found in (first, second)],
    )


def _lying(base: Base, sets: Sets) -> None:
    """Packs with the right name, in signed checkpoints of one file, as a broken ckpt may write them."""
    compression, stored = Compression.ZSTD, zstandard.ZstdCompressor(level=1).compress(PLAIN)
    entry = BlobEntry(stored_bytes=len(stored), chunks=2, compression=compression, kind=BlobKind.WHOLE)
    digests = b"".join(hashlib.sha256(PLAIN[at : at + CHUNK_BYTES]).digest() for at in (0, CHUNK_BYTES))
    right = PackList(blobs=(entry,), digests=digests)

    def add(which: str, about: str, listed: bytes, blobs: bytes, says: str) -> None:
        changes, checkpoint, pack = forge(base, listed, blobs, digests)
        sets.add(
            f"pack-{which}",
            about,
            changes,
            expect={"restore": CORRUPT | {"says": says}},
            verify=[told(CORRUPT, pack, says)],
            restore=checkpoint,
        )

    def one(**fields: object) -> bytes:
        return PackList(blobs=(replace(entry, **fields),), digests=digests).encode()  # type: ignore[arg-type]

    changes, checkpoint, _ = forge(base, right.encode(), stored, digests)
    sets.add(
        "pack-forged", "nothing is wrong: the others of this kind are made so", changes, restore=checkpoint
    )
    bomb = zstandard.ZstdCompressor(level=1).compress(bytes(256 << 20))
    zstd = {"compression": Compression.ZSTD}
    add(
        "bomb",
        "256 MiB of zeros where the list promises two chunks",
        one(**zstd, stored_bytes=len(bomb)),
        bomb,
        "its body claims 268435456 plain bytes, its header 8192",
    )
    unsized = zstandard.ZstdCompressor(level=1, write_content_size=False).compress(bytes(64 << 20))
    add(
        "unsized-bomb",
        "a zstd frame that does not say its size",
        one(**zstd, stored_bytes=len(unsized)),
        unsized,
        "plain bytes, its header 8192",
    )
    tail = zstandard.ZstdCompressor(level=1).compress(PLAIN) + b"tail"
    add(
        "blob-with-a-tail",
        "bytes behind a zstd frame",
        one(**zstd, stored_bytes=len(tail)),
        tail,
        "zstd says",
    )
    plain = {"compression": Compression.NONE}
    add(
        "blob-too-short",
        "fewer bytes than its chunks have",
        one(**plain, stored_bytes=5000),
        PLAIN[:5000],
        "a blob of 5000 plain bytes where its list promises 8192",
    )
    other = zstandard.ZstdCompressor(level=1).compress(PLAIN.upper())
    lie = one(**zstd, stored_bytes=len(other))
    add("other-content", "chunks that are not those of the list", lie, other, "has the digest")
    count = struct.Struct(">I")
    raw_entry = struct.Struct(">IHBB")
    blob = raw_entry.pack(len(stored), 2, compression, 0)
    add("list-of-nothing", "a list of no bytes", b"", stored, "its list has 0 bytes")
    add("no-blobs", "a list of no blobs", count.pack(0) + digests, stored, "a list of 0 blobs")
    huge = count.pack(0xFFFFFFFF) + blob + digests
    add("huge-list", "a list of four thousand million blobs", huge, stored, "a list of 4294967295 blobs")
    many = count.pack(65) + blob * 65 + digests * 65
    add("too-many-blobs", "a list of 65 blobs", many, stored * 65, "a list of 65 blobs")
    add(
        "digests-gone",
        "a list without digests",
        count.pack(1) + blob,
        stored,
        "bytes of digests should follow",
    )
    add("blob-of-nothing", "a blob of no chunks", one(chunks=0), stored, "a blob of 0 chunks")
    add("blob-too-big", "a blob of 257 chunks", one(chunks=257), stored, "a blob of 257 chunks")
    add(
        "blob-of-4-gib", "a blob of 4 GiB", one(stored_bytes=0xFFFFFFFF), stored, "a blob of 4294967295 bytes"
    )
    unknown = raw_entry.pack(len(stored), 2, 7, 0)
    says = "a blob of the kind 0 in compression 7"
    add("unknown-compression", "compression 7", count.pack(1) + unknown + digests, stored, says)
    unknown = raw_entry.pack(len(stored), 2, compression, 9)
    add("unknown-kind", "blobs of kind 9", count.pack(1) + unknown + digests, stored, "a blob of the kind 9")
    lost = one(stored_bytes=len(stored) - 1)
    add("blobs-too-short", "blobs that do not reach to the list", lost, stored, "its blobs end at byte")


def forge(base: Base, listed: bytes, blobs: bytes, digests: bytes) -> tuple[list[Change], str, str]:
    """A checkpoint of one file of two chunks in this pack: what to put, its id, the pack's name."""
    body = SALT + blobs + listed + TRAILER.pack(len(listed))
    content = pack_header(len(body), sealed=False) + body
    name = Digest(hashlib.sha256(SALT + listed).hexdigest())
    root = RootDigest(2 * CHUNK_BYTES)
    root.add(digests)

    def one_file(document: dict) -> None:
        file = {
            "name": "pages-1.img",
            "size_bytes": 2 * CHUNK_BYTES,
            "mode": 0o600,
            "root": bytes.fromhex(root.root()),
        }
        document["value"]["image_sets"][0]["files"] = [file]
        document["value"] |= {"carried_files": [], "saved_files": [], "volumes": []}

    checkpoint, manifest = put_manifest(base, changed(base, one_file))
    ref = PackRef(name=name, object_bytes=ByteCount(len(content)), list_bytes=ByteCount(len(listed)))
    layer = Layer()
    layer.add(0, 2, 0, 0)
    file = PlacedFile(root=root.root(), size_bytes=ByteCount(2 * CHUNK_BYTES), layers=(layer,), addresses=())
    placement = put_placement(base, Placement(checkpoint=checkpoint, packs=(ref,), files=(file,)))
    changes = [put(layout.pack(name), content), placement, manifest, put_signature(base, checkpoint)]
    return changes, checkpoint, name


def index_sets(base: Base) -> int:
    sets = Sets(base)
    name, other = base.index_names()
    content = base.raw(name)

    def add(
        which: str, about: str, change: Change, error: Expected, says: str, *, subject: str = name
    ) -> None:
        sets.add(f"index-{which}", about, [change], verify=[told(error, subject, says)])

    def made(called: str, about: str, plain: bytes, says: str) -> None:
        written = layout.index(digest_of(plain))
        add(called, about, put_plain(base, written, Kind.INDEX, plain), CORRUPT, says, subject=written)

    sets.add("index-gone", "an index is deleted: the store only knows less of what it has", [delete(name)])
    add("empty", "an index has no bytes", cut(name, 0), CORRUPT, "0 bytes are too few")
    add("cut", "an index is cut off", cut(name, len(content) - 5), CORRUPT, "bytes should follow the header")
    add(
        "header-flipped", "a bit of the header is flipped", flip(name, 13), CORRUPT, "check sum of its header"
    )
    add("flipped", "a bit of the body is flipped", flip(name, 60), CORRUPT, "check sum of its body")
    add(
        "newer-frame",
        "version 2 of the frame",
        put(name, newer_frame(content)),
        FORMAT,
        "version 2 of the frame",
    )
    sets.add(
        "index-swapped",
        "two indexes changed places",
        [swap(name, other)],
        verify=[told(CORRUPT, found, "the digest of its content is another") for found in (name, other)],
    )
    head = struct.Struct(">II")
    made("huge-packs", "four thousand million packs", head.pack(0xFFFFFFFF, 0), "0 marks of 4294967295 packs")
    made(
        "huge-marks",
        "four thousand million marks",
        head.pack(1, 0xFFFFFFFF) + bytes(32),
        "4294967295 marks of 1 pack",
    )
    made("no-packs", "marks of no packs", head.pack(0, 1) + bytes(12), "1 marks of 0 packs")
    made("short", "fewer bytes than its head has", b"\0\0\0", "it has 3")
    place = head.pack(1, 1) + bytes(32) + bytes(8) + (1).to_bytes(4, "big")
    made("of-no-pack", "a mark of a pack that its table lacks", place, "pack 1 of 1")
    plain = encode_index({1: 0, 1 << 63: 0}, (Digest("ab" * 32),))
    sets.add(
        "index-of-a-lost-pack",
        "marks of a pack that is not there: an index is a hint",
        [put(layout.index(digest_of(plain)), frame(Kind.INDEX, Compression.NONE, len(plain), plain))],
    )
    first, _ = base.pack_names()
    digest = hashlib.sha256(PLAIN[:CHUNK_BYTES]).digest()
    lie = encode_index({base.vault.mark(digest): 0}, (first,))
    sets.add(
        "index-lies",
        "a mark of a pack that does not have the chunk: the pack's own list counts",
        [put(layout.index(digest_of(lie)), frame(Kind.INDEX, Compression.NONE, len(lie), lie))],
    )
    return sets.write("index")
