"""Pages are found in the pages file wherever it has them, and what nobody has is refused."""

from __future__ import annotations

import pytest
from fakes.values import an_image_file

from ckpt.host.lazy.stored_pages import StoredPages
from ckpt.model.checkpoint import StoredFile
from ckpt.model.memory import PageRun
from ckpt.units import PAGE_BYTES, Pid

ROOT, PID = Pid(100), Pid(7)


def page(number: int) -> bytes:
    return bytes([number]) * PAGE_BYTES


@pytest.fixture
def pages() -> StoredPages:
    content = b"".join(map(page, range(10)))

    def read(_file: StoredFile, offset: int, size: int) -> bytes:
        return content[offset : offset + size]

    found = StoredPages()
    runs = [PageRun(page=50, count=2, chunk=3), PageRun(page=52, count=1, chunk=8)]
    found.add(ROOT, PID, an_image_file("pages-1.img", len(content)), runs, read)
    return found


def read(pages: StoredPages, first: int, count: int, pid: Pid = PID) -> bytes:
    into = bytearray(count * PAGE_BYTES)
    pages.read(ROOT, pid, first * PAGE_BYTES, memoryview(into))
    return bytes(into)


def test_what_lies_apart_in_the_file_comes_together(pages: StoredPages) -> None:
    assert read(pages, 50, 3) == page(3) + page(4) + page(8)
    assert read(pages, 51, 1) == page(4)


@pytest.mark.parametrize(("first", "count"), [(49, 1), (53, 1), (52, 2)])
def test_what_nobody_has_is_refused(first: int, count: int, pages: StoredPages) -> None:
    with pytest.raises(KeyError):
        read(pages, first, count)
    with pytest.raises(KeyError):
        read(pages, 50, 1, Pid(8))
