"""Files of a migration are sent without their holes, and are the same on the other side."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, cast

import pytest

from ckpt.host.migrating.senders import Far, HostSenders
from ckpt.units import Pid

MIB = 1 << 20


class FakeFar:
    """Keeps what is sent as the target does: the piece at 0 begins the file anew."""

    def __init__(self) -> None:
        self.content = b"what was there before"
        self.sent_bytes = 0

    def image_file(self, _root: Pid, _name: str, _mode: int, offset: int, content: memoryview) -> None:
        if offset == 0:
            self.content = b""
        self.content = self.content.ljust(offset, b"\0")
        self.content = self.content[:offset] + bytes(content) + self.content[offset + len(content) :]
        self.sent_bytes += len(content)


@pytest.mark.parametrize(
    ("size", "data"),
    [
        (0, []),
        (1, []),
        (3, [(0, 3)]),
        (40 * MIB, []),
        (40 * MIB, [(0, 100)]),
        (40 * MIB, [(20 * MIB, 100)]),
        (40 * MIB, [(MIB, 5 * MIB), (30 * MIB, 7), (40 * MIB - 1, 1)]),
        (9 * MIB + 1, [(0, 9 * MIB + 1)]),
    ],
)
def test_a_file_arrives_whole_and_its_holes_are_not_sent(
    size: int, data: list[tuple[int, int]], tmp_path: Path
) -> None:
    path = tmp_path / "file"
    with path.open("wb") as stream:
        stream.truncate(size)
        for at, length in data:
            os.pwrite(stream.fileno(), os.urandom(length), at)
    far = FakeFar()
    assert (
        HostSenders(str(tmp_path)).send_file(str(path), Pid(0), "name", cast("Far", cast("Any", far))) == size
    )
    assert far.content == path.read_bytes()
    # A file system knows holes by blocks.
    assert far.sent_bytes <= sum(length for _, length in data) + (len(data) + 1) * 2 * 4096
