"""The header that begins every object of a store.

Rules: F1 to F8 of images/FORMAT.md. The header says what follows and how long it is; its own CRC tells a
damaged header from one that a newer ckpt wrote.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Final

from ckpt.codec.limits import (
    BODY_SLACK_BYTES,
    CHUNK_BYTES_MAX,
    DOCUMENT_BYTES_MAX,
    INDEX_BYTES_MAX,
    PACK_BYTES_MAX,
    PLACEMENT_BYTES_MAX,
)
from ckpt.errors import FormatUnknown, ObjectCorrupt
from ckpt.units import ByteCount

# As PNG does it (RFC 2083, 12.11): a byte above 127, a line end of each kind and a control-Z show at once a
# file that was taken for text on its way.
MAGIC: Final = b"\x89ckpt\r\n\x1a"

FRAME_VERSION: Final = 1

_HEADER: Final = struct.Struct(">8s4sHBBIIII")

HEADER_BYTES: Final = _HEADER.size


class Kind(Enum):
    """What an object is; the value is the header's four letters."""

    CONFIG = b"CONF"
    MANIFEST = b"MANI"
    CHUNK = b"CHNK"
    RECEIPT = b"RCPT"
    TAG = b"TAGM"
    PACK = b"PACK"
    PLACEMENT = b"PLCE"
    SIGNATURE = b"SIGN"
    INDEX = b"INDX"

    def __str__(self) -> str:
        return self.name.lower()

    @property
    def named_by_content(self) -> bool:
        """Whether something else than the header's check sum proves the body: its name, or digests within."""
        return self in {Kind.CHUNK, Kind.MANIFEST, Kind.PACK}

    @property
    def plain_bytes_max(self) -> ByteCount:
        """The most plain bytes that an object of this kind may have."""
        return _PLAIN_BYTES_MAX.get(self, DOCUMENT_BYTES_MAX)

    @property
    def object_bytes_max(self) -> ByteCount:
        """The most bytes that an object of this kind may have as it is stored."""
        return ByteCount(HEADER_BYTES + self.plain_bytes_max + BODY_SLACK_BYTES)


_PLAIN_BYTES_MAX: Final = {
    Kind.CHUNK: CHUNK_BYTES_MAX,
    Kind.PACK: PACK_BYTES_MAX,
    Kind.PLACEMENT: PLACEMENT_BYTES_MAX,
    Kind.INDEX: INDEX_BYTES_MAX,
}

SEALED: Final = 1
"""The flag of a body that is encrypted: a salt, then what Vault.seal() gives."""

SALT_BYTES: Final = 16


class Compression(IntEnum):
    """How the body was made from the plain bytes."""

    NONE = 0
    ZSTD = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What an object says of itself; `check` is the body's CRC-32, 0 where the name is the check."""

    kind: Kind
    compression: Compression
    sealed: bool
    plain_bytes: ByteCount
    body_bytes: ByteCount
    check: int


def frame(
    kind: Kind, compression: Compression, plain_bytes: int, body: bytes, *, sealed: bool = False
) -> bytes:
    """The object: header and body."""
    check = 0 if kind.named_by_content else zlib.crc32(body)
    return _header(kind, compression, plain_bytes, len(body), check, sealed=sealed) + body


def pack_header(body_bytes: int, *, sealed: bool) -> bytes:
    """The header of a pack, whose body need not be in one piece."""
    return _header(Kind.PACK, Compression.NONE, body_bytes, body_bytes, 0, sealed=sealed)


def _header(
    kind: Kind, compression: Compression, plain_bytes: int, body_bytes: int, check: int, *, sealed: bool
) -> bytes:
    flags = SEALED if sealed else 0
    start = _HEADER.pack(
        MAGIC, kind.value, FRAME_VERSION, compression, flags, plain_bytes, body_bytes, check, 0
    )[:-4]
    return start + zlib.crc32(start).to_bytes(4, "big")


def read_header(start: bytes, kind: Kind, name: str, size_bytes: int) -> Header:
    """The header of an object that should be of this kind.

    Args:
        start: The object's first bytes, at least HEADER_BYTES of them if it has so many.
        kind: What the object's place in the store says that it is.
        name: What the errors call it.
        size_bytes: The size of the whole object.

    Raises:
        ObjectCorrupt: too short or too long, a damaged header, or another kind.
        FormatUnknown: written by a newer ckpt, or a config of something else.
    """
    if size_bytes < HEADER_BYTES or len(start) < HEADER_BYTES:
        raise _damaged(kind, name, f"{size_bytes} bytes are too few for its header of {HEADER_BYTES}")
    raw = start[:HEADER_BYTES]
    magic, letters, version, compression, flags, plain_bytes, body_bytes, check, crc = _HEADER.unpack(raw)
    if magic != MAGIC:
        reason = f"it begins with {magic.hex()}, not with ckpt's mark {MAGIC.hex()}"
        if kind is Kind.CONFIG:  # many programs call a file so: git, for one
            raise FormatUnknown(
                subject=f"The {kind} {name}", reason=reason, remedy="It is not a store of ckpt: name another."
            )
        raise _damaged(kind, name, reason)
    if crc != zlib.crc32(raw[:-4]):
        raise _damaged(kind, name, "the check sum of its header is wrong")
    if version != FRAME_VERSION:
        raise newer(kind, name, f"version {version} of the frame", f"version {FRAME_VERSION}")
    if letters != kind.value:
        raise _damaged(kind, name, f"it is marked {letters!r} where {kind.value!r} belongs")
    if flags not in {0, SEALED} or compression not in set(Compression):
        raise newer(
            kind, name, f"compression {compression} with flags {flags}", "compression 0 and 1, flags 0 and 1"
        )
    if plain_bytes > kind.plain_bytes_max:
        raise _damaged(
            kind, name, f"it claims {plain_bytes} plain bytes, and {kind.plain_bytes_max} is the most"
        )
    if size_bytes != HEADER_BYTES + body_bytes:
        found = size_bytes - HEADER_BYTES
        raise _damaged(kind, name, f"{body_bytes} bytes should follow the header, and {found} do")
    return Header(
        kind=kind,
        compression=Compression(compression),
        sealed=flags == SEALED,
        plain_bytes=ByteCount(plain_bytes),
        body_bytes=ByteCount(body_bytes),
        check=check,
    )


def unframe(content: bytes, kind: Kind, name: str) -> tuple[Header, memoryview]:
    """The header, and the body that belongs to it, whose check sum was compared.

    Raises:
        ObjectCorrupt: damaged.
        FormatUnknown: written by a newer ckpt.
    """
    header = read_header(content[:HEADER_BYTES], kind, name, len(content))
    body = memoryview(content)[HEADER_BYTES:]
    if header.check != (0 if kind.named_by_content else zlib.crc32(body)):
        raise _damaged(kind, name, "the check sum of its body is wrong")
    return header, body


def newer(kind: Kind, name: str, found: str, known: str) -> FormatUnknown:
    """The refusal of an object that a newer ckpt wrote; names both versions."""
    return FormatUnknown(
        subject=f"The {kind} {name}",
        reason=f"it is written in {found}, and this ckpt reads {known}",
        remedy="Use the ckpt that wrote it, or a newer one.",
    )


def _damaged(kind: Kind, name: str, reason: str) -> ObjectCorrupt:
    return ObjectCorrupt(kind=str(kind), name=name, reason=reason)
