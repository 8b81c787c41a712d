"""The list of a pack: exactly these bytes, and what is refused."""

from __future__ import annotations

import struct

import pytest

from ckpt.codec.frame import HEADER_BYTES, SALT_BYTES, Compression
from ckpt.codec.limits import BLOB_CHUNKS_MAX, BODY_SLACK_BYTES, PACK_BLOBS_MAX
from ckpt.codec.pack import BlobEntry, BlobKind, PackList, decode_list
from ckpt.errors import ObjectCorrupt
from ckpt.units import CHUNK_BYTES

DIGESTS = b"".join(bytes([number]) * 32 for number in range(5))
LIST = PackList(
    blobs=(
        BlobEntry(stored_bytes=258, chunks=3, compression=Compression.ZSTD, kind=BlobKind.WHOLE),
        BlobEntry(stored_bytes=8192, chunks=2, compression=Compression.NONE, kind=BlobKind.DELTA),
    ),
    digests=DIGESTS,
)


def raw(*entries: tuple[int, int, int, int], digests: int) -> bytes:
    return (
        struct.pack(">I", len(entries))
        + b"".join(struct.pack(">IHBB", *entry) for entry in entries)
        + bytes(32 * digests)
    )


def test_a_list_has_exactly_these_bytes() -> None:
    assert LIST.encode() == (b"\0\0\0\x02\0\0\x01\x02\0\x03\x01\x00\0\0\x20\x00\0\x02\x00\x01" + DIGESTS)


def test_it_says_where_blobs_and_digests_are() -> None:
    start = HEADER_BYTES + SALT_BYTES
    assert LIST.offsets == (start, start + 258, start + 258 + 8192)
    assert LIST.chunk_count == 5
    assert LIST.digests_of(1, 2) == DIGESTS[32:96]
    assert LIST.digests_of(BLOB_CHUNKS_MAX + 1, 1) == DIGESTS[128:]


@pytest.mark.parametrize(
    ("chunk", "count", "expected"),
    [
        (0, 3, True),
        (1, 3, False),
        (3, 1, False),
        (BLOB_CHUNKS_MAX, 2, True),
        (BLOB_CHUNKS_MAX, 3, False),
        (2 * BLOB_CHUNKS_MAX, 1, False),
        (1 << 31, 1, False),
    ],
)
def test_it_says_which_chunks_it_has(chunk: int, count: int, *, expected: bool) -> None:
    assert LIST.holds(chunk, count) is expected


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "its list has 0 bytes"),
        (b"\0\0\0", "its list has 3 bytes"),
        (raw(digests=0), "a list of 0 blobs"),
        (b"\xff\xff\xff\xff" + bytes(400), "a list of 4294967295 blobs in 404 bytes"),
        (raw(*[(1, 1, 0, 0)] * (PACK_BLOBS_MAX + 1), digests=PACK_BLOBS_MAX + 1), "a list of 65 blobs"),
        (raw((100, 0, 1, 0), digests=0), "a blob of 0 chunks"),
        (raw((100, BLOB_CHUNKS_MAX + 1, 1, 0), digests=257), "a blob of 257 chunks"),
        (raw((0, 1, 1, 0), digests=1), "a blob of 0 bytes"),
        (
            raw((BLOB_CHUNKS_MAX * CHUNK_BYTES + BODY_SLACK_BYTES + 1, 1, 1, 0), digests=1),
            "a blob of 1114113 bytes",
        ),
        (raw((100, 1, 2, 0), digests=1), "a blob of the kind 0 in compression 2"),
        (raw((100, 1, 1, 2), digests=1), "a blob of the kind 2 in compression 1"),
        (raw((100, 2, 1, 0), digests=1), "64 bytes of digests should follow its list, and 32 do"),
        (raw((100, 2, 1, 0), digests=3), "64 bytes of digests should follow its list, and 96 do"),
        (raw((100, 1, 1, 0), digests=1) + b"x", "32 bytes of digests should follow its list, and 33 do"),
    ],
)
def test_a_list_that_cannot_be_is_refused(content: bytes, reason: str) -> None:
    with pytest.raises(ObjectCorrupt, match=reason) as caught:
        decode_list(content, "ab")
    assert "pack ab" in caught.value.message
