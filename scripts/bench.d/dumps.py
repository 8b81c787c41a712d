"""Dumps of a process as a bare CRIU makes them, and what changed from one to the next, page by page."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import zstandard

from ckpt.host.criu.addresses import page_addresses
from ckpt.host.criu.locate import find_criu
from ckpt.units import PAGE_BYTES

BLOCK_BYTES = 1 << 20
FRAME_BYTES = 1 << 16
LEVEL = 1


@dataclass(frozen=True)
class Changes:
    """The pages whose content is not that of the same address in the dump before.

    `compressed_bytes`: these pages, one after another, in blocks of 1 MiB, each compressed with zstd -1.
    `delta_bytes`: the same pages XORed with their former version where there was one, in frames of 64 KiB.
    """

    pages: int
    of_pages: int
    compressed_bytes: int
    delta_bytes: int

    @property
    def plain_bytes(self) -> int:
        return self.pages * PAGE_BYTES


def dump(pid: int, images: Path) -> None:
    """CRIU's image files of this process, which runs on; nothing else is left in the directory."""
    images.mkdir()
    command = [
        str(find_criu()), "dump", "--tree", str(pid), "--images-dir", str(images), "--leave-running",
        "--network-lock", "nftables", "--file-locks", "--link-remap", "--log-file", "dump.log", "-v2",
    ]  # fmt: skip
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    for path in images.iterdir():
        if path.suffix != ".img":
            path.unlink()


def image_bytes(images: Path) -> int:
    return sum(path.stat().st_size for path in images.iterdir())


def into_page_cache(place: Path) -> None:
    """Read every file of a directory once, so that all tools find it in memory."""
    for folder, _, names in os.walk(place):
        for name in names:
            with open(os.path.join(folder, name), "rb", buffering=0) as file:
                while file.read(BLOCK_BYTES):
                    pass


def out_of_page_cache(place: Path) -> None:
    """Let the kernel forget the files of a directory that are not needed now."""
    for path in place.iterdir():
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def difference(expected: Path, found: Path) -> str | None:
    """The name of the first file that is not the same in both directories; None if all are."""
    names = sorted(path.name for path in expected.iterdir())
    if names != sorted(path.name for path in found.iterdir()):
        return "the list of files"
    for name in names:
        with (expected / name).open("rb") as one, (found / name).open("rb") as other:
            while True:
                block = one.read(BLOCK_BYTES)
                if block != other.read(BLOCK_BYTES):
                    return name
                if not block:
                    break
    return None


def changes(old: Path, new: Path) -> Changes:
    """Compare two dumps of the same process."""
    plain = Compressed(BLOCK_BYTES)
    delta = Compressed(FRAME_BYTES)
    pages = 0
    for page, former in _changed_pages(old, new):
        pages += 1
        plain.add(page)
        delta.add(page if former is None else _xor(page, former))
    total = sum(path.stat().st_size for path in new.glob("pages-*.img")) // PAGE_BYTES
    return Changes(pages=pages, of_pages=total, compressed_bytes=plain.total(), delta_bytes=delta.total())


class Compressed:
    """Counts what pages take when so many bytes of them are compressed together."""

    def __init__(self, block_bytes: int) -> None:
        self._compress = zstandard.ZstdCompressor(level=LEVEL).compress
        self._block_bytes = block_bytes
        self._block = bytearray()
        self._total = 0

    def add(self, page: bytes) -> None:
        self._block += page
        if len(self._block) >= self._block_bytes:
            self._close_block()

    def total(self) -> int:
        self._close_block()
        return self._total

    def _close_block(self) -> None:
        if self._block:
            self._total += len(self._compress(bytes(self._block)))
            self._block.clear()


def _changed_pages(old: Path, new: Path) -> Iterator[tuple[bytes, bytes | None]]:
    """Each changed page and its former version; none of the page where nothing was before."""
    former_places: dict[str, list[tuple[int, int, Path, int]]] = {}
    for space, page, count, path, offset in _places(old):
        former_places.setdefault(space, []).append((page, count, path, offset))
    for space, page, count, path, offset in _places(new):
        with path.open("rb", buffering=0) as file:
            for first, pages, former in _overlaps(former_places.get(space, []), page, count):
                at = offset + (first - page) * PAGE_BYTES
                yield from _compare(file.fileno(), at, pages, former)


def _places(images: Path) -> list[tuple[str, int, int, Path, int]]:
    """Space, first page, count, file and offset of each run of pages, in the order of their addresses."""
    return sorted(
        (run.space, run.page, run.count, images / name, run.chunk * PAGE_BYTES)
        for name, runs in page_addresses(images).items()
        for run in runs
    )


def _overlaps(
    former: list[tuple[int, int, Path, int]], page: int, count: int
) -> Iterator[tuple[int, int, tuple[Path, int] | None]]:
    """The run in pieces: first page, number of pages, and where their former versions begin, if anywhere."""
    end = page + count
    for begin, pages, path, offset in former:
        if begin + pages <= page:
            continue
        if begin >= end:
            break
        if begin > page:
            yield page, begin - page, None
            page = begin
        upto = min(end, begin + pages)
        yield page, upto - page, (path, offset + (page - begin) * PAGE_BYTES)
        page = upto
    if page < end:
        yield page, end - page, None


def _compare(
    fd: int, at: int, pages: int, former: tuple[Path, int] | None
) -> Iterator[tuple[bytes, bytes | None]]:
    with open(os.devnull if former is None else former[0], "rb", buffering=0) as before:
        for done in range(0, pages * PAGE_BYTES, BLOCK_BYTES):
            size = min(BLOCK_BYTES, pages * PAGE_BYTES - done)
            block = os.pread(fd, size, at + done)
            old = None if former is None else os.pread(before.fileno(), size, former[1] + done)
            if block == old:
                continue
            for begin in range(0, size, PAGE_BYTES):
                page = block[begin : begin + PAGE_BYTES]
                was = None if old is None else old[begin : begin + PAGE_BYTES]
                if page != was:
                    yield page, was


def _xor(page: bytes, former: bytes) -> bytes:
    mixed = int.from_bytes(page, "little") ^ int.from_bytes(former, "little")
    return mixed.to_bytes(len(page), "little")
