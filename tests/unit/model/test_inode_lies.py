"""What a checkpoint says of files is looked at before anything is done by it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from fakes.checkpoints import INODE

from ckpt.model.inodes import FileKind, Identity, lie_of
from ckpt.units import DeviceNumber, InodeNumber


def test_what_files_are_like_is_no_lie() -> None:
    assert lie_of(INODE) == ""
    assert lie_of(replace(INODE, path="/", kind=FileKind.DIRECTORY, mode=0o40755)) == ""
    assert lie_of(replace(INODE, path="pipe:[7]", kind=FileKind.FIFO, mode=0o10600)) == ""
    assert lie_of(replace(INODE, path="/memfd:a (b)", seen=None)) == ""


@pytest.mark.parametrize(
    ("lie", "says"),
    [
        ({"path": "/srv/../etc/shadow"}, "not plain"),
        ({"path": "//etc/shadow"}, "not plain"),
        ({"kind": FileKind.DIRECTORY}, "says something else"),
        ({"device": DeviceNumber(1 << 32)}, "no device has the number 0x100000000"),
        ({"seen": Identity(device=DeviceNumber(1 << 40), inode=InodeNumber(12))}, "no device has the number"),
        ({"seen": Identity(device=DeviceNumber(9), inode=InodeNumber(8))}, "inode 8 is reserved on ext4"),
    ],
)
def test_what_no_file_can_be_is_told(lie: dict[str, Any], says: str) -> None:
    assert says in lie_of(replace(INODE, **lie))
