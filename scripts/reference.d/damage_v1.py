"""Damage to a store of version 1: its config, its manifests with lists of chunks, its chunks."""

from __future__ import annotations

from collections.abc import Callable

import zstandard
from raw import Document, changed, document, put_document, put_manifest
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
    everywhere,
    flip,
    newer_frame,
    put,
    swap,
    told,
)

from ckpt.codec.frame import Compression, Kind, frame
from ckpt.codec.objects import MANIFEST
from ckpt.codec.v1 import ChunkedCheckpoint, ChunkedFile
from ckpt.store import layout
from ckpt.store.compress import from_object, to_object

PAGES = "pages-1.img"


def config_sets(base: Base) -> int:
    sets = Sets(base)
    content = document(base, "config", Kind.CONFIG)
    lie = put_document(
        base, "config", Kind.CONFIG, content | {"value": content["value"] | {"chunk_bytes": 1 << 40}}
    )
    error = CORRUPT | {"says": "chunk_bytes: 1099511627776 is not"}
    sets.add("v1-config-huge-chunks", "chunks of 1 TiB", [lie], expect=everywhere(error))
    error = CORRUPT | {"says": "check sum of its body"}
    sets.add("v1-config-flipped", "a bit is flipped", [flip("config", 60)], expect=everywhere(error))
    gone = MISSING | {"says": "has no object config"}
    sets.add("v1-config-gone", "the config is deleted", [delete("config")], expect=everywhere(gone))
    return sets.write("v1-config")


def _manifest(base: Base) -> ChunkedCheckpoint:
    name = layout.manifest(base.newest)
    _, found = MANIFEST.decode_any(base.plain(name, Kind.MANIFEST), name)
    assert isinstance(found, ChunkedCheckpoint)
    return found


def _pages(base: Base) -> ChunkedFile:
    return next(file for file in _manifest(base).files if file.name == PAGES)


def manifest_sets(base: Base) -> int:
    sets = Sets(base)
    name, other = layout.manifest(base.newest), layout.manifest(base.older)
    size = len(base.raw(name))

    def broken(which: str, about: str, change: Change, says: str, *more: str) -> None:
        error = CORRUPT | {"says": says}
        sets.add(
            f"v1-manifest-{which}",
            about,
            [change],
            expect={"list": error, "restore": error, "sweep": error},
            verify=[told(CORRUPT, found, says) for found in (base.newest, *more)],
            cure=[base.newest, *more],
        )

    gone = MISSING | {"says": f"has no checkpoint {base.newest}"}
    sets.add("v1-manifest-gone", "a manifest is deleted", [delete(name)], expect={"restore": gone})
    broken("cut", "a manifest is cut off", cut(name, size - 1), "bytes should follow the header")
    broken("flipped", "a bit of the body is flipped", flip(name, size // 2), "")
    broken(
        "swapped",
        "two manifests changed places",
        swap(name, other),
        "the digest of its content is",
        base.older,
    )
    pages = [file.name for file in _manifest(base).image_sets[0].files].index(PAGES)
    file = f"image_sets[0].files[{pages}]"

    def written(which: str, about: str, change: Callable[[Document], object], says: str) -> None:
        found, made = put_manifest(base, changed(base, change))
        error = CORRUPT | {"says": says}
        sets.add(
            f"v1-manifest-{which}",
            about,
            [made],
            expect={"list": error, "restore": error, "sweep": error},
            verify=[told(CORRUPT, found, says)],
            restore=found,
            cure=[found],
        )

    def pages_file(key: str, content: object) -> Callable[[Document], object]:
        return lambda made: made["value"]["image_sets"][0]["files"][pages].__setitem__(key, content)

    written(
        "lying-file-size",
        "a file that is longer than its chunks",
        pages_file("size_bytes", 1 << 50),
        f"{file}.size_bytes: 1125899906842624 bytes, but its chunks have",
    )
    written(
        "huge-chunk",
        "a chunk of 1 TiB",
        pages_file("chunks", [{"digest": bytes(32), "size_bytes": 1 << 40}]),
        f"{file}.chunks[0].size_bytes: a chunk of 1099511627776 bytes",
    )
    written(
        "empty-chunk",
        "a chunk without bytes",
        pages_file("chunks", [{"digest": bytes(32), "size_bytes": 0}]),
        f"{file}.chunks[0].size_bytes: a chunk of 0 bytes",
    )
    written(
        "name-climbs",
        "an image file that climbs out of its directory",
        pages_file("name", "../../etc/cron.d/x"),
        f"{file}.name: '../../etc/cron.d/x' is not the plain name of a file",
    )
    written(
        "of-version-2",
        "it says that it is of version 2",
        lambda made: made.update(version=2),
        "field 'chunks' where 'root' belongs",
    )

    def other_sizes(made: Document) -> None:
        chunks = made["value"]["image_sets"][0]["files"][pages]["chunks"]
        chunks[0]["size_bytes"] -= 4096
        chunks[1]["size_bytes"] += 4096

    found, made = put_manifest(base, changed(base, other_sizes))
    first, second = _pages(base).chunks[:2]
    sizes = {first.digest: first.size_bytes - 4096, second.digest: second.size_bytes + 4096}
    sets.add(
        "v1-manifest-lying-chunk-sizes",
        "chunks that add up, but are not of these sizes",
        [made],
        expect={"restore": CORRUPT | {"says": "plain bytes where"}},
        verify=[
            told(CORRUPT, digest, f"plain bytes where {size} are expected") for digest, size in sizes.items()
        ],
        restore=found,
    )
    return sets.write("v1-manifest")


def chunk_sets(base: Base) -> int:
    sets = Sets(base)
    chunk, other = _pages(base).chunks[:2]
    name = layout.chunk(chunk.digest)
    content = base.raw(name)
    plain = from_object(Kind.CHUNK, name, content)

    def add(which: str, about: str, change: Change, error: Expected, says: str) -> None:
        sets.add(
            f"v1-chunk-{which}",
            about,
            [change],
            expect={"restore": error | {"says": says}},
            verify=[told(error, chunk.digest, says)],
        )

    def body(compression: Compression, size: int, inner: bytes) -> Change:
        return put(name, frame(Kind.CHUNK, compression, size, inner))

    zstd = zstandard.ZstdCompressor(level=1)
    packed_plain = zstd.compress(plain)
    size = len(plain)
    add("gone", "a chunk is deleted", delete(name), MISSING, f"has no chunk {chunk.digest}")
    add(
        "empty",
        "a chunk has no bytes, as some file systems leave it",
        cut(name, 0),
        CORRUPT,
        "0 bytes are too few",
    )
    add("cut", "a chunk is cut off", cut(name, len(content) // 2), CORRUPT, "bytes should follow the header")
    add(
        "header-flipped", "a bit of the header is flipped", flip(name, 13), CORRUPT, "check sum of its header"
    )
    add("body-flipped", "a bit of the body is flipped", flip(name, len(content) // 2), CORRUPT, "")
    add(
        "newer-frame",
        "version 2 of the frame",
        put(name, newer_frame(content)),
        FORMAT,
        "version 2 of the frame",
    )
    tag = next((base.place / "tags").iterdir())
    add(
        "of-another-kind",
        "a tag mark in its place",
        put(name, tag.read_bytes()),
        CORRUPT,
        "it is marked b'TAGM'",
    )
    x = to_object(Kind.CHUNK, b"x" * size)
    add(
        "other-content",
        "a whole chunk with other content",
        put(name, x),
        CORRUPT,
        "the digest of its content is",
    )
    lie = body(Compression.ZSTD, 1 << 30, packed_plain)
    add(
        "lying-header",
        "a header that claims 1 GiB",
        lie,
        CORRUPT,
        "it claims 1073741824 plain bytes, and 16777216",
    )
    bomb = body(Compression.ZSTD, size, zstd.compress(bytes(256 << 20)))
    add(
        "bomb",
        "256 MiB of zeros where a chunk is promised",
        bomb,
        CORRUPT,
        f"claims 268435456 plain bytes, its header {size}",
    )
    unsized = zstandard.ZstdCompressor(level=1, write_content_size=False).compress(bytes(64 << 20))
    unsized_bomb = body(Compression.ZSTD, size, unsized)
    add(
        "unsized-bomb",
        "a zstd frame that does not say its size",
        unsized_bomb,
        CORRUPT,
        f"plain bytes, its header {size}",
    )
    add(
        "with-a-tail",
        "bytes behind the zstd frame",
        body(Compression.ZSTD, size, packed_plain + b"tail"),
        CORRUPT,
        "zstd says",
    )
    short = body(Compression.NONE, size, plain[:-1])
    add(
        "shorter",
        "fewer plain bytes than promised",
        short,
        CORRUPT,
        f"{size - 1} plain bytes where it claims {size}",
    )
    sets.add(
        "v1-chunk-swapped",
        "two chunks changed places",
        [swap(name, layout.chunk(other.digest))],
        expect={"restore": CORRUPT | {"says": ""}},
        verify=[told(CORRUPT, found.digest, "the digest of its content is") for found in (chunk, other)],
    )
    return sets.write("v1-chunk")
