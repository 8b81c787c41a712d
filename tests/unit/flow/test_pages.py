"""Pages of two address spaces compared: each has the state that it must have, and counts once."""

from __future__ import annotations

from hashlib import sha256

import pytest

from ckpt.errors import ObjectCorrupt
from ckpt.flow.pages import StoredSpace, compare_pages
from ckpt.model.changes import PageCounts
from ckpt.model.memory import AddressSpace, Area, AreaKind, PageRun, PageState
from ckpt.units import PAGE_BYTES, Pid

ZEROS = bytes(PAGE_BYTES)
A, Z, F, H, S, U, C = (
    PageState.ABSENT,
    PageState.ZERO,
    PageState.FILE_BACKED,
    PageState.SHARED,
    PageState.STORED,
    PageState.UNCHANGED,
    PageState.CHANGED,
)


def area(page: int, pages: int, kind: AreaKind = AreaKind.ANONYMOUS, shared: int | None = None) -> Area:
    return Area(
        start=page * PAGE_BYTES,
        end=(page + pages) * PAGE_BYTES,
        permissions="rw-p",
        kind=kind,
        path="",
        offset=0,
        shared=shared,
    )


def space(areas: list[Area], pages: dict[int, str | None], name: str = "pagemap-7") -> StoredSpace:
    """A space with these pages: a word stands for the content, "" for stored zeros, None for known ones."""
    runs, digests = [], b""
    for page, word in sorted(pages.items()):
        runs.append(PageRun(page=page, count=1, chunk=None if word is None else len(digests) // 32))
        if word is not None:
            digests += sha256(word.encode().ljust(PAGE_BYTES, b"\0")).digest()
    return StoredSpace(
        space=AddressSpace(
            name=name,
            pids=(Pid(7),),
            pages_file="pages-1.img",
            areas=tuple(areas),
            runs=tuple(joined(runs)),
        ),
        digests=digests,
    )


def joined(runs: list[PageRun]) -> list[PageRun]:
    """As few runs as can be, as page maps are read."""
    out: list[PageRun] = []
    for run in runs:
        if (
            out
            and out[-1].page + out[-1].count == run.page
            and (out[-1].chunk is None) == (run.chunk is None)
        ):
            out[-1] = PageRun(page=out[-1].page, count=out[-1].count + 1, chunk=out[-1].chunk)
        else:
            out.append(run)
    return out


def test_every_page_has_its_state() -> None:
    areas = [area(10, 8), area(30, 3, AreaKind.FILE), area(40, 2, AreaKind.SHARED_MEMORY, shared=0)]
    before = space(areas, {10: "a", 11: "b", 12: None, 13: "", 15: "gone", 31: "x"})
    after = space(areas, {10: "a", 11: "B", 12: "", 13: "now", 14: "new", 16: None, 30: "copied", 31: "x"})
    found = compare_pages(after, before)
    assert [list(each.states()) for each in found.areas] == [[U, C, Z, C, S, A, Z, A], [S, U, F], [H, H]]
    assert found.areas[0].counts == PageCounts(same=2, changed=2, new=2)
    assert found.areas[1].counts == PageCounts(same=1, new=1)
    assert found.gone == (1, 0, 0)
    assert found.counts == PageCounts(same=3, changed=2, new=3, gone=1)
    assert found.areas[0].states(1, 3) == bytes([C, Z, C])


def test_without_an_earlier_checkpoint_pages_are_stored_or_zero() -> None:
    found = compare_pages(space([area(0, 4)], {0: "a", 1: "", 3: None}), None)
    assert list(found.areas[0].states()) == [S, Z, A, Z]
    assert found.counts == PageCounts(new=3)


def test_zeros_are_the_same_however_they_are_kept() -> None:
    one, other = space([area(0, 4)], {0: None, 1: "", 2: None}), space([area(0, 4)], {0: "", 1: None, 2: "x"})
    assert compare_pages(one, other).counts == PageCounts(same=2, changed=1)
    assert compare_pages(other, one).counts == PageCounts(same=2, changed=1)


def test_what_lies_at_an_address_counts_and_not_what_is_mapped_there() -> None:
    before = space([area(0, 8)], dict.fromkeys(range(8), "x"))
    after = space([area(2, 2), area(6, 4)], {2: "x", 3: "y", 6: "x", 8: "x"})
    found = compare_pages(after, before)
    assert [each.counts for each in found.areas] == [PageCounts(same=1, changed=1), PageCounts(same=1, new=1)]
    assert found.gone == (5,)


def test_shared_memory_is_one_area_of_its_own() -> None:
    before, after = (
        space([], {0: "a", 2: "b"}, "pagemap-shmem-4"),
        space([], {0: "a", 2: "c"}, "pagemap-shmem-4"),
    )
    [found] = compare_pages(after, before).areas
    assert list(found.states()) == [U, A, C]


def test_a_mapping_larger_than_any_memory_takes_none() -> None:
    wide = [area(0, 1 << 50)]
    found = compare_pages(space(wide, {5: "a", 1 << 49: "b"}), space(wide, {5: "a"}))
    assert found.counts == PageCounts(same=1, new=1)
    assert list(found.areas[0].states(4, 3)) == [A, U, A]


def test_a_million_zeros_that_nobody_stored_are_told_in_one_extent() -> None:
    zeros = AddressSpace(
        name="pagemap-7",
        pids=(Pid(7),),
        pages_file="",
        areas=(area(0, 1 << 50),),
        runs=(PageRun(page=0, count=1 << 50, chunk=None),),
    )
    both = StoredSpace(space=zeros, digests=b"")
    assert compare_pages(both, both).counts == PageCounts(same=1 << 50)


def test_more_pages_than_are_stored_are_an_error() -> None:
    short = space([area(0, 2)], {0: "a", 1: "b"})
    short = StoredSpace(space=short.space, digests=short.digests[:-1])
    with pytest.raises(ObjectCorrupt, match="pagemap-7"):
        compare_pages(short, None)


def test_large_spaces_agree_with_a_comparison_page_by_page() -> None:
    pages = 5000
    before = space([area(0, pages)], {page: f"{page}" for page in range(pages) if page % 7})
    after = space(
        [area(0, pages)], {page: f"{page // 100 % 3 or page}" for page in range(pages) if page % 11 != 3}
    )
    expected = [
        A if page % 11 == 3 else S if not page % 7 else C if page // 100 % 3 else U for page in range(pages)
    ]
    found = compare_pages(after, before)
    assert list(found.areas[0].states()) == [
        state if state != C or f"{page // 100 % 3}" != f"{page}" else U for page, state in enumerate(expected)
    ]
    assert found.counts.gone == sum(page % 11 == 3 and page % 7 > 0 for page in range(pages))
