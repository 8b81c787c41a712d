"""The structures on /dev/fuse, byte for byte as the kernel's fuse.h has them."""

from __future__ import annotations

import errno
import os
import struct
from pathlib import Path

import pytest

from ckpt.host.inodes.fuse import wire
from ckpt.host.inodes.fuse.wire import Changes, Opcode, Request

PASSTHROUGH, RESEND, EXTENDED, ACL = 1 << 37, 1 << 39, 1 << 30, 1 << 20


def init_in(flags: int, major: int = 7) -> bytes:
    return struct.pack("=IIIII44x", major, 45, 131072, flags & 0xFFFFFFFF, flags >> 32)


def setattr_in(valid: int, **values: int) -> bytes:
    names = ("fh", "size", "lock_owner", "atime", "mtime", "ctime")
    more = ("atimensec", "mtimensec", "ctimensec", "mode", "unused", "uid", "gid", "unused2")
    return struct.pack(
        "=II6Q8I", valid, 0, *(values.get(name, 0) for name in names), *(values.get(name, 0) for name in more)
    )


def test_a_request_is_its_header_and_a_body() -> None:
    packet = struct.pack("=IIQQIIIHH", 44, Opcode.LOOKUP, 1 << 63 | 6, 1, 0, 0, 4711, 0, 0) + b"2\0.."
    assert wire.parse_request(packet) == Request(Opcode.LOOKUP, 1 << 63 | 6, 1, b"2\0..")


def test_an_answer_says_its_length_and_the_error_as_a_negative_number() -> None:
    assert wire.answer(6, b"four") == struct.pack("=IiQ", 20, 0, 6) + b"four"
    assert wire.answer(6, error=errno.ENOENT) == struct.pack("=IiQ", 16, -errno.ENOENT, 6)


def test_passthrough_is_agreed_upon_and_nothing_that_was_not_offered() -> None:
    offered = EXTENDED | PASSTHROUGH | RESEND | ACL | 1 << 12
    out = wire.init_out(init_in(offered))
    assert len(out) == 64
    major, _, _, flags = struct.unpack_from("=IIII", out)
    more, stack_depth = struct.unpack_from("=II", out, 32)
    assert (major, stack_depth) == (7, 2)
    assert flags | more << 32 == EXTENDED | PASSTHROUGH | ACL


@pytest.mark.parametrize(
    "body",
    [
        init_in(EXTENDED | RESEND),
        init_in(EXTENDED | PASSTHROUGH),
        init_in(PASSTHROUGH | RESEND),
        init_in(EXTENDED | PASSTHROUGH | RESEND, major=6),
        init_in(0)[:16],
    ],
)
def test_a_kernel_that_cannot_pass_through_is_told_apart(body: bytes) -> None:
    with pytest.raises(OSError, match="not supported"):
        wire.init_out(body)


def test_attributes_are_the_files_under_another_number(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"content")
    os.utime(file, ns=(-1_500_000_000, 7_000_000_008))
    status = file.stat()
    content = wire.attributes(status, 1 << 63 | 5)
    number, size, blocks, atime, mtime, _ = struct.unpack_from("=QQQqqq", content)
    atime_ns, mtime_ns, _, mode, links, uid, gid, _, block, _ = struct.unpack_from("=10I", content, 48)
    assert len(content) == 88
    assert (number, size, blocks) == (1 << 63 | 5, 7, status.st_blocks)
    assert (atime, atime_ns, mtime, mtime_ns) == (-2, 500_000_000, 7, 8)
    assert (mode, links, uid, gid) == (status.st_mode, 1, status.st_uid, status.st_gid)
    assert block == status.st_blksize


def test_only_what_is_marked_as_valid_is_changed() -> None:
    nothing = Changes(mode=None, uid=None, gid=None, size=None, atime_ns=None, mtime_ns=None)
    body = setattr_in(0, size=5, mode=0o600, uid=1, gid=2, atime=1, mtime=2)
    assert wire.parse_setattr(body) == nothing

    body = setattr_in(0b1111, size=5, mode=0o100600, uid=1, gid=2)
    assert wire.parse_setattr(body) == nothing._replace(size=5, mode=0o100600, uid=1, gid=2)

    body = setattr_in(1 << 4 | 1 << 5 | 1 << 8, atime=(1 << 64) - 2, atimensec=9, mtime=7)
    assert wire.parse_setattr(body) == nothing._replace(atime_ns=-1_999_999_991, mtime_ns=-1)


def test_extended_attributes_are_measured_before_they_are_given() -> None:
    assert wire.parse_getxattr(struct.pack("=II", 16, 0) + b"user.name\0") == (16, b"user.name")
    assert wire.parse_setxattr(struct.pack("=II", 3, 1) + b"user.name\0a\0bX") == (b"user.name", b"a\0b", 1)
    assert wire.xattr_out(b"value", 0) == struct.pack("=II", 5, 0)
    assert wire.xattr_out(b"value", 5) == b"value"
    with pytest.raises(OSError, match="out of range"):
        wire.xattr_out(b"value", 4)
