"""Pages that are compared, sent and kept: without a process."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ckpt.errors import NoSpace, ObjectCorrupt
from ckpt.host.precopy import spool as spool_module
from ckpt.host.precopy.comparing import Comparison, Space
from ckpt.host.precopy.dumped import dumped_pages
from ckpt.host.precopy.known import KnownSpace
from ckpt.host.precopy.runs import WORDS, Pages, Rows, batches, runs_of
from ckpt.host.precopy.spool import Spool
from ckpt.host.precopy.table import ABSENT, PageTable
from ckpt.model.checkpoint import AddressRun
from ckpt.model.pages import PageRun

SPACE = "7/pagemap-7"


class Sink:
    """Takes pages, or fails from a piece on."""

    def __init__(self, *, fails_at: int | None = None) -> None:
        self.taken: list[tuple[list[PageRun], int]] = []
        self._fails_at = fails_at

    def pages(self, space: str, runs: Sequence[PageRun], content: memoryview) -> None:
        assert space == SPACE
        if len(self.taken) == self._fails_at:
            raise ConnectionResetError
        self.taken.append((list(runs), len(content)))

    def numbers(self) -> list[int]:
        return [
            page for runs, _ in self.taken for run in runs for page in range(run.page, run.page + run.count)
        ]


class Known:
    """Knows some pages."""

    def __init__(self, pages: Pages, rows: Rows) -> None:
        self._said = (pages, b"".join(hashlib.sha256(row.data).digest() for row in rows))

    def digests(self, space: str) -> tuple[Pages, bytes] | None:
        return self._said if space == SPACE else None


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    spool = Spool(str(tmp_path))
    yield spool
    spool.close()


def rows_of(pages: Pages, version: int = 0) -> Rows:
    rows = np.zeros((len(pages), WORDS), np.uint64)
    rows[:, 17] = pages
    rows[:, WORDS - 1] = version
    return rows


def compare(space: Space, sink: Sink, *pieces: tuple[Pages, Rows], keeps: bool = True) -> int:
    comparison = Comparison(space, sink, keeps=keeps)
    try:
        for pages, rows in pieces:
            comparison.take(pages, rows)
        comparison.flush()
    finally:
        comparison.close()
    return comparison.changed_pages


def a_space(spool: Spool, known: Known | None = None) -> Space:
    return Space(SPACE, spool, KnownSpace(known, SPACE))


def test_runs_are_split_into_batches_and_found_again() -> None:
    runs = np.array([[5, 1], [100, 300], [1 << 40, 200], [2 << 40, 1]], np.int64)
    pieces = list(batches(runs))
    assert max(map(len, pieces)) <= 128
    assert np.array_equal(runs_of(np.concatenate(pieces)), runs)
    assert list(batches(runs[:0])) == []


def test_a_table_finds_neighbours_and_strays_and_the_newest_place() -> None:
    table = PageTable()
    assert table.find(np.array([1, 2])).tolist() == [ABSENT, ABSENT]
    table.put(np.arange(10, 20), np.arange(100, 110))
    table.put(np.array([50]), np.array([110]))
    table.settle()
    assert table.find(np.arange(12, 15)).tolist() == [102, 103, 104]
    assert table.find(np.array([9, 10, 19, 20, 50, 99])).tolist() == [ABSENT, 100, 109, ABSENT, 110, ABSENT]
    table.put(np.array([5, 12]), np.array([111, ABSENT]))
    table.put(np.array([12]), np.array([112]))
    table.settle()
    assert table.find(np.array([5, 11, 12, 13])).tolist() == [111, 101, 112, 103]


def test_pages_are_sent_once_and_again_when_they_differ(spool: Spool) -> None:
    space, sink = a_space(spool), Sink()
    pages = np.concatenate((np.arange(0, 3000, 2), np.arange(5000, 6000)))
    pieces = [(pages[low : low + 128], rows_of(pages[low : low + 128])) for low in range(0, len(pages), 128)]
    assert compare(space, sink, *pieces) == len(pages)
    assert sink.numbers() == pages.tolist()
    assert max(size for _, size in sink.taken) <= 4 << 20
    assert compare(space, Sink(), *pieces) == 0
    # Two others in one piece, a new one between old ones, in an order that is not that of the spool.
    changed, mixed = rows_of(pieces[3][0]), np.array([4998, 4999, 5000, 5001])
    changed[[7, 99], 0] = 1
    sink = Sink()
    assert compare(space, sink, (pieces[3][0], changed), (mixed, rows_of(mixed))) == 4
    assert sink.numbers() == [*pieces[3][0][[7, 99]].tolist(), 4998, 4999]
    assert compare(space, Sink(), (pieces[3][0], changed), (mixed, rows_of(mixed))) == 0
    assert compare(space, Sink(), pieces[3]) == 2


def test_pieces_that_do_not_ascend_are_handed_over_apart(spool: Spool) -> None:
    sink = Sink()
    high, low = np.arange(900, 910), np.arange(3, 5)
    compare(a_space(spool), sink, (high, rows_of(high)), (low, rows_of(low)))
    assert [runs for runs, _ in sink.taken] == [[PageRun(900, 10)], [PageRun(3, 2)]]


def test_what_the_sink_did_not_take_is_sent_again_whatever_is_in_it_then(spool: Spool) -> None:
    space, pages = a_space(spool), np.arange(2048)
    before, after = (
        [(pages[low : low + 128], rows_of(pages, version)[low : low + 128]) for low in range(0, 2048, 128)]
        for version in (1, 2)
    )
    with pytest.raises(ConnectionResetError):
        compare(space, Sink(fails_at=1), *before)
    assert compare(space, Sink(), *before) == 1024
    # It may have arrived though the sink says that it failed: going back to what was sent first is a change.
    with pytest.raises(ConnectionResetError):
        compare(space, Sink(fails_at=1), *after)
    sink = Sink()
    assert compare(space, sink, *before) == 2048
    assert compare(space, Sink(), *before) == 0


def test_what_is_sent_and_not_kept_is_unknown_afterwards(spool: Spool) -> None:
    space, pages = a_space(spool), np.arange(100)
    compare(space, Sink(), (pages, rows_of(pages)))
    changed = rows_of(pages)
    changed[40, 0] = 1
    assert compare(space, Sink(), (pages, changed), keeps=False) == 1
    assert compare(space, Sink(), (pages, rows_of(pages)), keeps=False) == 1
    assert compare(space, Sink(), (pages, rows_of(pages))) == 1


def test_pages_with_known_digests_are_kept_without_being_sent(spool: Spool) -> None:
    had = np.array([3, 50, 51, 200])
    rows = rows_of(had)
    rows[1, 0] = 9
    pages = np.arange(40, 60)
    space, sink = a_space(spool, Known(had, rows)), Sink()
    assert compare(space, sink, (pages, rows_of(pages))) == 19
    assert 51 not in sink.numbers()
    assert compare(space, Sink(), (pages, rows_of(pages, 1))) == 20


def test_a_full_disk_is_an_error_that_names_the_place(
    spool: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_arguments: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    space, pages = a_space(spool), np.arange(10)
    with monkeypatch.context() as patched:
        patched.setattr(spool_module.os, "pwrite", full)
        with pytest.raises(NoSpace, match=str(tmp_path)):
            compare(space, Sink(), (pages, rows_of(pages)))
    assert compare(space, Sink(), (pages, rows_of(pages))) == 10


def test_the_spool_has_no_name_and_grows(tmp_path: Path) -> None:
    spool = Spool(str(tmp_path))
    try:
        assert os.listdir(tmp_path) == []
        first = spool.append(rows_of(np.arange(10)))
        kept = spool.rows(first)
        last = spool.append(rows_of(np.arange(20_000)))
        assert np.array_equal(kept, spool.rows(first))
        assert np.array_equal(spool.rows(last[[0, 19_999]])[:, 17], [0, 19_999])
    finally:
        spool.close()
        spool.close()


def test_a_pages_file_that_is_too_short_is_damaged(tmp_path: Path) -> None:
    (tmp_path / "pages-1.img").write_bytes(bytes(3 * 4096))
    runs = [AddressRun(space="pagemap-7", page=5, chunk=0, count=3)]
    [(pages, rows)] = dumped_pages(tmp_path / "pages-1.img", runs)
    assert (pages.tolist(), rows.shape) == ([5, 6, 7], (3, WORDS))
    with pytest.raises(ObjectCorrupt, match="names 4 pages"):
        list(dumped_pages(tmp_path / "pages-1.img", [*runs, AddressRun(space="", page=9, chunk=3, count=1)]))
