"""Tables of pages against a plain dictionary that says the same, page by page."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckpt.host.received.table import PAGES_MAX, PageTable, Pieces, Slots, pieces_of
from ckpt.model.pages import PageRun

HIGHEST = 60
PAGES = st.sets(st.integers(0, HIGHEST), min_size=1, max_size=30)


def runs_of(pages: set[int]) -> list[PageRun]:
    """Each page as a run of its own or with its neighbours, as even and odd pages have it."""
    runs: list[PageRun] = []
    for page in sorted(pages):
        if runs and runs[-1].page + runs[-1].count == page and page % 3:
            runs[-1] = PageRun(runs[-1].page, runs[-1].count + 1)
        else:
            runs.append(PageRun(page, 1))
    return runs


def pieces(pages: set[int]) -> Pieces:
    return pieces_of(runs_of(pages), len(pages))


def found_in(slots: Slots) -> dict[int, int]:
    return {at + step: slot + step for at, slot, count in slots for step in range(count)}


def pages_in(part: Pieces) -> dict[int, int]:
    rows = zip(part.first.tolist(), part.end.tolist(), part.at.tolist(), strict=True)
    return {page: at + page - first for first, end, at in rows for page in range(first, end)}


def add(table: PageTable, model: dict[int, int], pages: set[int]) -> None:
    """Put pages into a table as a level does, and check what it says of them."""
    message = sorted(pages)
    found, rest = table.split(pieces(pages))
    assert found_in(found) == {at: model[page] for at, page in enumerate(message) if page in model}
    assert pages_in(rest) == {page: at for at, page in enumerate(message) if page not in model}
    table.append(rest)
    for page in message:
        model.setdefault(page, len(model))
    assert table.pages == len(model)


@given(st.lists(PAGES, min_size=1, max_size=6))
def test_a_table_knows_of_every_page_whether_and_where_it_is(messages: list[set[int]]) -> None:
    table, model = PageTable(), dict[int, int]()
    for message in messages:
        add(table, model, message)
    assert table.is_ascending == (list(model) == sorted(model))


@given(st.lists(PAGES, min_size=1, max_size=6))
def test_sorting_moves_every_page_to_its_place(messages: list[set[int]]) -> None:
    table, model = PageTable(), dict[int, int]()
    for message in messages:
        add(table, model, message)
    moved = {}
    for source, target, count in table.sort():
        moved |= {source + step: target + step for step in range(count)}
    assert moved == {slot: number for number, (_, slot) in enumerate(sorted(model.items()))}
    assert table.is_ascending
    add(table, {page: moved[slot] for page, slot in model.items()}, set(range(HIGHEST + 5)))


@given(st.lists(PAGES, min_size=1, max_size=6))
def test_a_table_is_the_same_when_it_is_made_of_the_file(messages: list[set[int]]) -> None:
    table, model, order = PageTable(), dict[int, int](), list[PageRun]()
    for message in messages:
        order += runs_of(message - set(model))
        add(table, model, message)
    again = PageTable.of(*np.array(order, dtype=np.int64).T)
    assert (again.pages, again.is_ascending) == (table.pages, table.is_ascending)
    add(again, model, set(range(HIGHEST + 5)))


def test_a_file_that_has_a_page_twice_makes_no_table() -> None:
    with pytest.raises(ValueError, match="twice"):
        PageTable.of(np.array([5, 9, 4]), np.array([2, 1, 2]))


@pytest.mark.parametrize(
    ("runs", "pages", "words"),
    [
        ([(1, 2)], 3, "do not name the 3 pages"),
        ([(1, 0)], 0, "do not name"),
        ([(1, -1), (5, 2)], 1, "do not name"),
        ([(1, 1 << 62), (5, 1 << 62)], 1, "do not name"),
        ([(-1, 1)], 1, "beyond page"),
        ([(PAGES_MAX, 1)], 1, "beyond page"),
        ([(5, 1), (4, 1)], 2, "not ascending"),
        ([(5, 2), (6, 1)], 3, "not ascending"),
        ([(1 << 70, 1)], 1, "not a pair of numbers"),
        ([(1, 2, 3)], 2, "not a pair of numbers"),
        ([("a", 1)], 1, "not a pair of numbers"),
    ],
)
def test_runs_that_cannot_be_are_refused(runs: list[PageRun], pages: int, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        pieces_of(runs, pages)


def test_16_gib_of_memory_in_which_no_two_pages_lie_together_cost_less_than_200_mib() -> None:
    pages, message = 4 << 20, 64 << 10
    tracemalloc.start()
    try:
        table = PageTable()
        for begin in range(0, pages, message):
            first = np.arange(begin, begin + message) * 2
            part = Pieces(first=first, end=first + 1, at=np.arange(message))
            found, rest = table.split(part)
            assert not len(found.at)
            table.append(rest)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert table.pages == pages
    assert peak < 200 << 20
