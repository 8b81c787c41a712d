"""Memory of a given size, half of it compressible, that checks itself piece by piece.

Usage: ballast.py SIZE_MIB --log FILE [--dirty MIB_PER_S] [--tick-ms 50]

--dirty writes to that much memory a second, page by page from the start, over and over. SIGTERM ends it.
"""

from __future__ import annotations

import argparse
import mmap
import os
import signal
import sys
import time
import zlib

from report import Report

BLOCK_BYTES = 1 << 20
PAGE_BYTES = 4096
BLOCKS_A_TICK = 4


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(usage=(__doc__ or "").partition("Usage: ")[2].partition("\n")[0])
    parser.add_argument("size_mib", type=int)
    parser.add_argument("--log", required=True)
    parser.add_argument("--dirty", type=float, default=0)
    parser.add_argument("--tick-ms", type=float, default=50)
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    report = Report(options.log)
    ballast = Ballast(options.size_mib)
    tick_s = options.tick_ms / 1000
    number = 0
    while True:
        number += 1
        dirtied = ballast.dirty(int(options.dirty * tick_s * BLOCK_BYTES / PAGE_BYTES))
        wrong = ballast.wrong_block(number)
        if wrong is not None:
            report.error(number, f"block {wrong} is not what was written")
            return 99
        report.tick(number, size_mib=options.size_mib, dirtied_pages=dirtied)
        time.sleep(tick_s)


class Ballast:
    """Blocks of one MiB with their checksums; a quarter of each page repeats, a quarter is empty."""

    def __init__(self, blocks: int) -> None:
        self._memory = mmap.mmap(
            -1, max(1, blocks) * BLOCK_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        )
        self._checksums = [self._fill(block) for block in range(max(1, blocks))]
        self._next_page = 0
        self._dirtied = 0

    def dirty(self, pages: int) -> int:
        """Change so many pages; returns how many were changed so far."""
        touched = set()
        for _ in range(pages):
            at = self._next_page * PAGE_BYTES
            self._memory[at : at + 8] = self._dirtied.to_bytes(8, "big")
            touched.add(at // BLOCK_BYTES)
            self._dirtied += 1
            self._next_page = (self._next_page + 1) % (len(self._memory) // PAGE_BYTES)
        for block in touched:
            self._checksums[block] = self._checksum(block)
        return self._dirtied

    def wrong_block(self, number: int) -> int | None:
        """Check a few blocks, others every time; returns the number of one that is not what it must be."""
        for offset in range(BLOCKS_A_TICK):
            block = (number * BLOCKS_A_TICK + offset) % len(self._checksums)
            if self._checksum(block) != self._checksums[block]:
                return block
        return None

    def _fill(self, block: int) -> int:
        half = PAGE_BYTES // 2
        quarter = PAGE_BYTES // 4
        noise = os.urandom(BLOCK_BYTES // 2)
        for page in range(BLOCK_BYTES // PAGE_BYTES):
            at = block * BLOCK_BYTES + page * PAGE_BYTES
            text = b"page %12d of block %7d, again\n" % (page, block)
            self._memory[at : at + half] = noise[page * half : (page + 1) * half]
            self._memory[at + half : at + half + quarter] = (text * (quarter // len(text) + 1))[:quarter]
        return self._checksum(block)

    def _checksum(self, block: int) -> int:
        return zlib.crc32(self._memory[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
