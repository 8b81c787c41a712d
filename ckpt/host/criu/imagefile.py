"""CRIU's image files: a magic number, then entries of a size and a message, some with bytes behind them.

    FILE  = [COMMON or SERVICE] MAGIC ENTRY*        (inventory.img has MAGIC alone)
    ENTRY = SIZE MESSAGE [EXTRA]                    (both numbers are 32 bits, little endian)

Rules: sizes are checked against what is left of the file before anything is read. What is not changed is
written back as the bytes that it was read from.
Source: images/*.proto, criu/image.c (img_check_magic), criu/protobuf.c, criu/magic.h.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

from ckpt.errors import ObjectCorrupt, OsRefused
from ckpt.host.criu.pb import MAGIC, DecodeError, image

IMAGE_BYTES_MAX: Final = 1 << 30
"""No image file that is read whole is larger; those that are (pages, ghost files) are never read here."""

_NUMBER: Final = struct.Struct("<I")
_HEADS: Final = frozenset((MAGIC["IMG_COMMON"], MAGIC["IMG_SERVICE"]))
_HEADLESS: Final = frozenset(("INVENTORY",))


def read_entries(
    path: Path,
    kind: str,
    message: str,
    *,
    first: str = "",
    extra_bytes: Callable[[Any], int] | None = None,
) -> list[Any]:
    """All messages of an image file.

    Args:
        path: The file.
        kind: CRIU's name of this kind of file, as in pb.MAGIC.
        message: The name of the message class, as in images/*.proto.
        first: The class of the first message, where it is another one.
        extra_bytes: How many bytes follow a message, for the kinds that have such.

    Raises:
        ObjectCorrupt: it is not what its name says; says where.
        OsRefused: it cannot be read.
    """
    content = _read(path)
    size = len(content)
    offset = _after_magic(path, content, kind)
    parse_rest: Callable[[bytes], Any] = getattr(image, message).FromString
    parse = getattr(image, first).FromString if first else parse_rest
    messages: list[Any] = []
    while offset < size:
        if size - offset < _NUMBER.size:
            raise _corrupt(path, f"it ends within the size at byte {offset}")
        (length,) = _NUMBER.unpack_from(content, offset)
        offset += _NUMBER.size
        if length > size - offset:
            raise _corrupt(
                path, f"the entry at byte {offset} has {length} bytes, and {size - offset} are left"
            )
        try:
            parsed = parse(content[offset : offset + length])
        except DecodeError as error:
            raise _corrupt(path, f"the entry at byte {offset} cannot be decoded") from error
        # The decoder does not mind, but what is not whole cannot be written again.
        if not parsed.IsInitialized():
            raise _corrupt(path, f"the entry at byte {offset} is not whole")
        offset += length
        if extra_bytes is not None:
            extra = extra_bytes(parsed)
            if not 0 <= extra <= size - offset:
                raise _corrupt(
                    path, f"{extra} bytes must follow at byte {offset}, and {size - offset} are left"
                )
            offset += extra
        messages.append(parsed)
        parse = parse_rest
    return messages


def read_entry(path: Path, kind: str, message: str) -> Any:
    """The one message of an image file that must have exactly one.

    Raises:
        ObjectCorrupt: it is not what its name says, or has none or several.
        OsRefused: it cannot be read.
    """
    entries = read_entries(path, kind, message)
    if len(entries) != 1:
        raise _corrupt(path, f"it has {len(entries)} entries, where 1 must be")
    return entries[0]


def write_entries(path: Path, kind: str, messages: Iterable[Any]) -> None:
    """Replace an image file by these messages, at once: a reader sees the old file or the new one.

    Raises:
        OsRefused: it cannot be written.
    """
    parts = [_NUMBER.pack(magic) for magic in _magics(kind)]
    for message in messages:
        payload = message.SerializeToString()
        parts += (_NUMBER.pack(len(payload)), payload)
    temporary = path.with_name(f"{path.name}.new")
    try:
        temporary.write_bytes(b"".join(parts))
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OsRefused(operation="write", subject=str(path), reason=os.strerror(error.errno or 0)) from error


def _magics(kind: str) -> tuple[int, ...]:
    if kind in _HEADLESS:
        return (MAGIC[kind],)
    return (MAGIC["IMG_SERVICE" if kind == "STATS" else "IMG_COMMON"], MAGIC[kind])


def _after_magic(path: Path, content: bytes, kind: str) -> int:
    expected = _magics(kind)
    if len(content) < _NUMBER.size * len(expected):
        raise _corrupt(path, f"it has {len(content)} bytes, too few for an image file")
    found = struct.unpack_from(f"<{len(expected)}I", content)
    if found[-1] != expected[-1] or (len(found) > 1 and found[0] not in _HEADS):
        raise _corrupt(path, f"it does not begin as a {kind} image does")
    return _NUMBER.size * len(expected)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            # A reader takes room for all that it is asked for before it knows how much there is.
            size_bytes = os.fstat(file.fileno()).st_size
            content = file.read(min(size_bytes, IMAGE_BYTES_MAX) + 1)
    except OSError as error:
        raise OsRefused(operation="read", subject=str(path), reason=os.strerror(error.errno or 0)) from error
    if len(content) > IMAGE_BYTES_MAX:
        raise _corrupt(path, f"it has more than {IMAGE_BYTES_MAX} bytes")
    return content


def _corrupt(path: Path, reason: str) -> ObjectCorrupt:
    return ObjectCorrupt(kind="image file", name=path.name, reason=reason)
