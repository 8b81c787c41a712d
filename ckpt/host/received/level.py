"""A level of a space: a pages file, and beside it which pages it has.

    N.pages   the pages, one after another
    N.runs    the number of the first page and the count (64 bits each, little endian) of runs of them, in its order
    N.map     CRIU's page map of it, once the level is closed

Rules: a run is noted after its pages are written, so that one that is noted is there, however a process ends. After
a crash of the whole host a page may be there with any content: whoever goes on compares digests first. A page map
must be ascending: a file that is not is put in order when the level is closed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Final

import numpy as np

from ckpt.errors import ObjectCorrupt
from ckpt.host.criu.page_maps import MapEntry, Where, write_map
from ckpt.host.received.durable import Unwritten, writing
from ckpt.host.received.table import PAGES_MAX, PageTable, Pieces
from ckpt.model.pages import PageRun
from ckpt.units import PAGE_BYTES

_RUN_BYTES: Final = 16
_STEP_PAGES: Final = 256
_VECTORS_MAX: Final = 1024  # IOV_MAX
_FLAGS: Final = os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC


class Level:
    """The pages of a space that came new in one round; those that are there from an earlier process are read in.

    Raises (every method): OsRefused, NoSpace; the first call ObjectCorrupt, where what is there is no level.
    """

    def __init__(self, place: str, unwritten: Unwritten) -> None:
        """Open the level at `place`, which the names of its files begin with."""
        self.pages_path: Final = f"{place}.pages"
        self.map_path: Final = f"{place}.map"
        self._runs_path: Final = f"{place}.runs"
        self._directory: Final = os.path.dirname(place)
        self._unwritten = unwritten
        self._runs = 0
        self._is_closed = False
        self.table = PageTable()
        with writing(self._directory):
            self._read()
        unwritten.add(self.pages_path, self._runs_path, self._directory)

    def write(self, pieces: Pieces, content: memoryview) -> Pieces:
        """Overwrite the pages that are here; gives the pieces that are not."""
        found, rest = self.table.split(pieces)
        if len(found.at):
            with self._open() as fd:
                for at, slot, count in found:
                    source = content[at * PAGE_BYTES : (at + count) * PAGE_BYTES]
                    _write_all(fd, [source], slot * PAGE_BYTES)
        return rest

    def append(self, pieces: Pieces, content: memoryview) -> None:
        """Add pages that are not here."""
        if not len(pieces.first):
            return
        # The table puts neighbours together that are none in the message.
        sources = [
            content[at * PAGE_BYTES : (at + count) * PAGE_BYTES]
            for at, count in zip(pieces.at.tolist(), pieces.counts.tolist(), strict=True)
        ]
        with self._open() as fd:
            _write_all(fd, sources, self.table.pages * PAGE_BYTES)
        noted = np.stack((pieces.first, pieces.counts), axis=1).astype("<i8")
        with writing(self._directory), _opened(self._runs_path, os.O_WRONLY) as fd:
            _write_all(fd, [memoryview(noted.tobytes())], self._runs * _RUN_BYTES)
        self.table.append(pieces)
        self._runs += len(noted)
        self._unwritten.add(self._runs_path)
        self._is_closed = False

    def close(self, pages_id: int, behind: tuple[int, int]) -> None:
        """Put it in order, and write its page map.

        Args:
            pages_id: The number that its pages file will have in an image set.
            behind: From the first page to the one after the last that the levels before it have.
        """
        if self._is_closed:
            return
        if not self.table.is_ascending:
            self._sort()
        write_map(Path(self.map_path), pages_id, self._entries(*behind))
        self._unwritten.add(self.map_path, self._directory)
        self._is_closed = True

    def digests(self, pages_max: int) -> Iterator[tuple[list[PageRun], bytes]]:
        """The SHA-256 of each page, one after another, of at most `pages_max` pages at once."""
        runs: list[PageRun] = []
        digests = bytearray()
        pages = 0
        with writing(self._directory), _opened(self.pages_path, os.O_RDONLY) as fd:
            for first, count, slot in self._steps(min(pages_max, _STEP_PAGES)):
                if pages + count > pages_max:
                    yield runs, bytes(digests)
                    runs, digests, pages = [], bytearray(), 0
                content = memoryview(os.pread(fd, count * PAGE_BYTES, slot * PAGE_BYTES))
                if len(content) != count * PAGE_BYTES:
                    raise _too_short(self.pages_path)
                for at in range(0, len(content), PAGE_BYTES):
                    digests += sha256(content[at : at + PAGE_BYTES]).digest()
                runs.append(PageRun(first, count))
                pages += count
        if runs:
            yield runs, bytes(digests)

    def _steps(self, pages_max: int) -> Iterator[tuple[int, int, int]]:
        """The first page, the count and the slot of pieces of at most so many pages."""
        table = self.table
        rows = zip(table.first.tolist(), table.end.tolist(), table.slot.tolist(), strict=True)
        for first, end, slot in rows:
            for begin in range(first, end, pages_max):
                yield begin, min(end - begin, pages_max), slot + begin - first

    def _entries(self, lowest: int, behind: int) -> Iterator[MapEntry]:
        """Its own pages, and whatever is between them as its parent's: CRIU asks for nothing that nobody has."""
        at = lowest
        for first, end in zip(self.table.first.tolist(), self.table.end.tolist(), strict=True):
            if at < (until := min(first, behind)):
                yield MapEntry(at, until - at, Where.PARENT)
            yield MapEntry(first, end - first, Where.HERE)
            at = max(at, end)
        if at < behind:
            yield MapEntry(at, behind - at, Where.PARENT)

    def _read(self) -> None:
        Path(self._runs_path).touch(0o600)
        noted = np.fromfile(self._runs_path, dtype="<i8").astype(np.int64)
        noted = noted[: len(noted) // 2 * 2].reshape(-1, 2)
        first, count = noted[:, 0], noted[:, 1]
        # A crash of the host leaves zeros where nothing had been written out.
        is_wrong = (first < 0) | (count < 1) | (first > PAGES_MAX) | (count > PAGES_MAX - first)
        self._runs = int(np.argmax(is_wrong)) if is_wrong.any() else len(noted)
        try:
            self.table = PageTable.of(first[: self._runs].copy(), count[: self._runs].copy())
        except ValueError as error:
            raise ObjectCorrupt(
                kind="list of pages", name=self._runs_path, reason=str(error), remedy="Migrate it anew."
            ) from error
        with _opened(self.pages_path, os.O_RDWR) as fd:
            os.ftruncate(fd, self.table.pages * PAGE_BYTES)

    def _sort(self) -> None:
        moves = self.table.sort()
        with self._open() as old, _opened(f"{self.pages_path}.new", os.O_WRONLY | os.O_TRUNC) as new:
            for source, target, count in moves:
                _copy(old, new, source * PAGE_BYTES, target * PAGE_BYTES, count * PAGE_BYTES)
        noted = np.stack((self.table.first, self.table.end - self.table.first), axis=1).astype("<i8")
        with writing(self._directory):
            Path(f"{self._runs_path}.new").write_bytes(noted.tobytes())
            # Between the two a page's content is another's: whoever goes on after a crash compares digests first.
            os.replace(f"{self.pages_path}.new", self.pages_path)
            os.replace(f"{self._runs_path}.new", self._runs_path)
        self._runs = len(noted)
        self._unwritten.add(self.pages_path, self._runs_path, self._directory)

    @contextmanager
    def _open(self) -> Iterator[int]:
        self._unwritten.add(self.pages_path)
        with writing(self._directory), _opened(self.pages_path, os.O_RDWR) as fd:
            yield fd


@contextmanager
def _opened(path: str, flags: int) -> Iterator[int]:
    fd = os.open(path, flags | _FLAGS, 0o600)
    try:
        yield fd
    finally:
        os.close(fd)


def _write_all(fd: int, sources: list[memoryview], offset: int) -> None:
    rest = iter(sources)
    while batch := list(islice(rest, _VECTORS_MAX)):
        while batch:
            written = os.pwritev(fd, batch, offset)
            offset += written
            while batch and written >= len(batch[0]):
                written -= len(batch.pop(0))
            if written:
                batch[0] = batch[0][written:]


def _copy(source: int, target: int, at: int, to: int, count: int) -> None:
    while count:
        copied = os.copy_file_range(source, target, count, at, to)
        if not copied:
            raise _too_short(str(source))
        at, to, count = at + copied, to + copied, count - copied


def _too_short(path: str) -> ObjectCorrupt:
    return ObjectCorrupt(
        kind="pages file", name=path, reason="it is shorter than its list says", remedy="Migrate it anew."
    )
