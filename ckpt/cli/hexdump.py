"""Stored memory as `hexdump -C` shows bytes; what is not stored is said in words."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Final

from ckpt.cli.output import on_one_line
from ckpt.flow.extents import Extent
from ckpt.flow.memory import StoredMemory
from ckpt.model.memory import Backing

LINE_BYTES: Final = 16

_ZEROS: Final = bytes(1 << 20)
_PRINTABLE: Final = bytes(byte if 0x20 <= byte < 0x7F else ord(".") for byte in range(256)).decode()


def hexdump(memory: StoredMemory, extents: Iterable[Extent]) -> Iterator[str]:
    """The lines, each with its address; lines like the one before are an asterisk."""
    end = 0
    for stored, group in itertools.groupby(extents, key=lambda extent: extent.backing is Backing.STORED):
        if not stored:
            for extent in group:
                end = extent.end
                yield f"{extent.start:016x}  {in_words(extent)}"
            continue
        first = next(group)
        end, former, skipping = first.start, b"", False
        for line in _in_lines(plain_bytes(memory, itertools.chain((first,), group))):
            if line == former and len(line) == LINE_BYTES:
                if not skipping:
                    yield "*"
                skipping = True
            else:
                yield _hex_line(end, line)
                former, skipping = line, False
            end += len(line)
    yield f"{end:016x}"


def plain_bytes(memory: StoredMemory, extents: Iterable[Extent]) -> Iterator[bytes]:
    """The bytes of extents that are stored or zeros."""
    for extent in extents:
        if extent.backing is Backing.ZEROS:
            for at in range(0, extent.size_bytes, len(_ZEROS)):
                yield _ZEROS[: extent.size_bytes - at]
        else:
            yield from memory.read(extent)


def in_words(extent: Extent) -> str:
    """What is to be known of bytes that are not shown."""
    size, area = extent.size_bytes, extent.area
    match extent.backing:
        case Backing.ZEROS:
            return f"{size} bytes that were never written, or only with zeros"
        case Backing.FILE:
            path = "" if area is None else on_one_line(area.path)
            return f"{size} bytes that are not stored: they are in {path or 'a file'} from byte {extent.offset} on"
        case Backing.ABSENT:
            if area is None:
                return f"{size} bytes where nothing was mapped"
            return f"{size} bytes that are not stored: {area.kind.value} memory"
        case Backing.STORED:
            return f"{size} bytes that are stored"


def printable(content: bytes) -> str:
    """The bytes as ASCII, dots for what cannot be printed."""
    return content.decode("latin-1").translate(_PRINTABLE)


def _hex_line(address: int, line: bytes) -> str:
    half = LINE_BYTES // 2
    left, right = line[:half].hex(" "), line[half:].hex(" ")
    return f"{address:016x}  {left:<23}  {right:<23}  |{printable(line)}|"


def _in_lines(parts: Iterable[bytes]) -> Iterator[bytes]:
    rest = b""
    for part in parts:
        plain = rest + part
        whole = len(plain) // LINE_BYTES * LINE_BYTES
        for at in range(0, whole, LINE_BYTES):
            yield plain[at : at + LINE_BYTES]
        rest = plain[whole:]
    if rest:
        yield rest
