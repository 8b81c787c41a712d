"""Blocks of a file are written, those of zeros as holes.

Source: fallocate(2), FALLOC_FL_PUNCH_HOLE.
"""

from __future__ import annotations

import errno
import os

from ckpt.host.inodes import calls
from ckpt.host.shipping.blocks import BLOCK_BYTES, DIGEST_BYTES, ZERO_DIGEST


def write_blocks(fd: int, first_block: int, content: memoryview, digests: bytes) -> None:
    """Write blocks that follow each other, whose digests these are.

    Raises:
        OSError: they cannot be written.
    """
    count, start = len(digests) // DIGEST_BYTES, 0
    is_zero = [digests[at : at + DIGEST_BYTES] == ZERO_DIGEST for at in range(0, len(digests), DIGEST_BYTES)]
    while start < count:
        end = start + 1
        while end < count and is_zero[end] == is_zero[start]:
            end += 1
        part = content[start * BLOCK_BYTES : end * BLOCK_BYTES]
        at = (first_block + start) * BLOCK_BYTES
        if not (is_zero[start] and _punch(fd, at, len(part))):
            while part:
                written = os.pwrite(fd, part, at)
                part, at = part[written:], at + written
        start = end


def _punch(fd: int, start: int, size: int) -> bool:
    try:
        calls.punch_hole(fd, start, size)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        return False
    return True
