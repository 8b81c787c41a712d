"""Memory of a given size, half of it compressible, that checks itself piece by piece.

Usage: ballast.py SIZE_MIB --log FILE [--dirty MIB_PER_S] [--scatter PERCENT] [--tick-ms 50]

--dirty writes to that much memory a second, page by page from the start, over and over. --scatter writes so
many of the pages anew, whole and at scattered places, each time that SIGUSR1 comes; `scattered_pages` of the
next tick counts them. SIGTERM ends it.
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
    parser.add_argument("--scatter", type=float, default=0)
    parser.add_argument("--tick-ms", type=float, default=50)
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    wanted: list[float] = []
    if options.scatter:
        signal.signal(signal.SIGUSR1, lambda *_: wanted.append(options.scatter))
    report = Report(options.log)
    ballast = Ballast(options.size_mib)
    tick_s = options.tick_ms / 1000
    number = 0
    while True:
        number += 1
        dirtied = ballast.dirty(int(options.dirty * tick_s * BLOCK_BYTES / PAGE_BYTES))
        while wanted:
            ballast.scatter(wanted.pop())
        wrong = ballast.wrong_block(number)
        if wrong is not None:
            report.error(number, f"block {wrong} is not what was written")
            return 99
        report.tick(
            number,
            size_mib=options.size_mib,
            dirtied_pages=dirtied,
            scattered_pages=ballast.scattered_pages,
        )
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
        self._scatterings = 0
        self.scattered_pages = 0

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

    def scatter(self, percent: float) -> None:
        """Write so many of the pages anew, with content of the same kind.

        Each lies somewhere else in its own stretch of the memory; which, depends on nothing but how often this
        was called.
        """
        pages = len(self._memory) // PAGE_BYTES
        stretch = max(1, round(100 / percent))
        self._scatterings += 1
        touched = set()
        for first in range(0, pages - stretch + 1, stretch):
            page = first + zlib.crc32(b"%d %d" % (self._scatterings, first)) % stretch
            self._write_page(page, os.urandom(PAGE_BYTES // 2))
            touched.add(page * PAGE_BYTES // BLOCK_BYTES)
            self.scattered_pages += 1
        for block in touched:
            self._checksums[block] = self._checksum(block)

    def wrong_block(self, number: int) -> int | None:
        """Check a few blocks, others every time; returns the number of one that is not what it must be."""
        for offset in range(BLOCKS_A_TICK):
            block = (number * BLOCKS_A_TICK + offset) % len(self._checksums)
            if self._checksum(block) != self._checksums[block]:
                return block
        return None

    def _fill(self, block: int) -> int:
        half = PAGE_BYTES // 2
        noise = os.urandom(BLOCK_BYTES // 2)
        pages = BLOCK_BYTES // PAGE_BYTES
        for page in range(pages):
            self._write_page(block * pages + page, noise[page * half : (page + 1) * half])
        return self._checksum(block)

    def _write_page(self, number: int, noise: bytes) -> None:
        half = PAGE_BYTES // 2
        quarter = PAGE_BYTES // 4
        block, page = divmod(number, BLOCK_BYTES // PAGE_BYTES)
        at = number * PAGE_BYTES
        text = b"page %12d of block %7d, again\n" % (page, block)
        self._memory[at : at + half] = noise
        self._memory[at + half : at + half + quarter] = (text * (quarter // len(text) + 1))[:quarter]

    def _checksum(self, block: int) -> int:
        return zlib.crc32(self._memory[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
