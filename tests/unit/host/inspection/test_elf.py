"""Build-ids of ELF files, and of files that are none or are damaged."""

from __future__ import annotations

import os
import struct
import sys
from pathlib import Path

import pytest

from ckpt.host.inspection.elf import build_id

IDENTITY = bytes(range(20))


def elf(*, note: bytes, entry_bytes: int = 56, entries: int = 1) -> bytes:
    header = bytearray(64)
    header[:5] = b"\x7fELF\x02"
    struct.pack_into("=Q", header, 32, 64)
    struct.pack_into("=HH", header, 54, entry_bytes, entries)
    program = struct.pack("=IIQQQQQQ", 4, 0, 64 + 56, 0, 0, len(note), len(note), 4)
    return bytes(header) + program + note


def note(kind: int, name: bytes, content: bytes) -> bytes:
    padded = name + bytes(-len(name) % 4)
    return struct.pack("=III", len(name), len(content), kind) + padded + content + bytes(-len(content) % 4)


def read(path: Path, content: bytes) -> str | None:
    path.write_bytes(content)
    fd = os.open(path, os.O_RDONLY)
    try:
        return build_id(fd)
    finally:
        os.close(fd)


def test_the_build_id_is_found_behind_other_notes(tmp_path: Path) -> None:
    notes = note(5, b"GNU\0", b"property") + note(3, b"GNU\0", IDENTITY)
    assert read(tmp_path / "elf", elf(note=notes)) == IDENTITY.hex()


def test_the_running_interpreter_can_be_read() -> None:
    fd = os.open(sys.executable, os.O_RDONLY)
    try:
        found = build_id(fd)
    finally:
        os.close(fd)
    assert found is None or bytes.fromhex(found)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"#!/bin/sh\n",
        elf(note=b"")[:70],
        elf(note=note(3, b"GNU\0", IDENTITY), entries=0xFFFF),
        elf(note=note(3, b"GNU\0", IDENTITY), entry_bytes=1),
        elf(note=note(3, b"XYZ\0", IDENTITY)),
        elf(note=struct.pack("=III", 0xFFFFFFFF, 0xFFFFFFFF, 3)),
    ],
    ids=["empty", "script", "cut off", "too many headers", "short headers", "other owner", "absurd sizes"],
)
def test_what_has_no_build_id_gives_none(tmp_path: Path, content: bytes) -> None:
    assert read(tmp_path / "file", content) is None
