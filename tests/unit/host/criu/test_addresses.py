"""Where pages lie: the runs of a page map are those of its pages file, whole and in its order."""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckpt.errors import ObjectCorrupt, OsRefused
from ckpt.host.criu.addresses import page_addresses
from ckpt.host.criu.imagefile import write_entries
from ckpt.host.criu.pb import image
from ckpt.model.checkpoint import AddressRun
from ckpt.units import PAGE_BYTES

PARENT, LAZY, PRESENT = 1, 2, 4


def area(page: int, pages: int, flags: int = PRESENT) -> Any:
    return image.pagemap_entry(vaddr=page * PAGE_BYTES, compat_nr_pages=pages, nr_pages=pages, flags=flags)


def make_map(images: Path, name: str, pages_id: int, *entries: Any) -> None:
    write_entries(images / name, "PAGEMAP", [image.pagemap_head(pages_id=pages_id), *entries])


def run(space: str, page: int, chunk: int, count: int) -> AddressRun:
    return AddressRun(space=space, page=page, chunk=chunk, count=count)


def test_pages_that_are_not_in_the_pages_file_are_skipped(tmp_path: Path) -> None:
    make_map(
        tmp_path,
        "pagemap-7.img",
        1,
        area(10, 2),
        area(12, 5, PARENT),
        area(17, 3, LAZY),
        area(20, 1, PRESENT | LAZY),
    )
    assert page_addresses(tmp_path) == {
        "pages-1.img": (run("pagemap-7", 10, 0, 2), run("pagemap-7", 20, 2, 1))
    }


def test_entries_that_follow_each_other_are_one_run(tmp_path: Path) -> None:
    make_map(tmp_path, "pagemap-7.img", 1, area(10, 2), area(12, 5), area(18, 1))
    assert page_addresses(tmp_path) == {
        "pages-1.img": (run("pagemap-7", 10, 0, 7), run("pagemap-7", 18, 7, 1))
    }


def test_a_map_that_begins_at_address_zero_is_read_like_any_other(tmp_path: Path) -> None:
    make_map(tmp_path, "pagemap-shmem-9.img", 1, area(0, 2), area(2, 1))
    assert page_addresses(tmp_path) == {"pages-1.img": (run("pagemap-shmem-9", 0, 0, 3),)}


def test_each_map_has_a_space_of_its_own(tmp_path: Path) -> None:
    make_map(tmp_path, "pagemap-7.img", 1, area(10, 2))
    make_map(tmp_path, "pagemap-8.img", 3, area(10, 2))
    make_map(tmp_path, "pagemap-shmem-7.img", 2)
    assert page_addresses(tmp_path) == {
        "pages-1.img": (run("pagemap-7", 10, 0, 2),),
        "pages-3.img": (run("pagemap-8", 10, 0, 2),),
        "pages-2.img": (),
    }


def test_images_of_old_criu_say_it_in_other_fields(tmp_path: Path) -> None:
    here = image.pagemap_entry(vaddr=4 * PAGE_BYTES, compat_nr_pages=2)
    in_parent = image.pagemap_entry(vaddr=6 * PAGE_BYTES, compat_nr_pages=2, in_parent=True)
    make_map(tmp_path, "pagemap-7.img", 1, here, in_parent)
    assert page_addresses(tmp_path) == {"pages-1.img": (run("pagemap-7", 4, 0, 2),)}


def test_a_directory_without_page_maps_has_no_addresses(tmp_path: Path) -> None:
    assert page_addresses(tmp_path) == {}


def test_a_map_without_a_head_is_damaged(tmp_path: Path) -> None:
    write_entries(tmp_path / "pagemap-7.img", "PAGEMAP", [])
    with pytest.raises(ObjectCorrupt, match=r"pagemap-7\.img"):
        page_addresses(tmp_path)


def test_a_directory_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OsRefused, match="gone"):
        page_addresses(tmp_path / "gone")


@given(
    areas=st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 4), st.sampled_from([PRESENT, PARENT])), max_size=30
    )
)
def test_runs_give_every_present_page_once_and_in_order(
    tmp_path_factory: pytest.TempPathFactory, areas: list[tuple[int, int, int]]
) -> None:
    images = tmp_path_factory.mktemp("images")
    entries, expected, page = [], [], 0
    for gap, pages, flags in areas:
        page += gap
        entries.append(area(page, pages, flags))
        expected += range(page, page + pages) if flags & PRESENT else ()
        page += pages
    make_map(images, "pagemap-7.img", 1, *entries)
    runs = page_addresses(images)["pages-1.img"]
    assert [each.page + step for each in runs for step in range(each.count)] == expected
    assert [each.chunk + step for each in runs for step in range(each.count)] == list(range(len(expected)))
    assert all(
        (one.page + one.count, one.chunk + one.count) != (two.page, two.chunk)
        for one, two in itertools.pairwise(runs)
    )


def test_a_map_of_many_entries_is_read_quickly(tmp_path: Path) -> None:
    make_map(tmp_path, "pagemap-7.img", 1, *(area(2 * number, 1) for number in range(131_072)))
    began = time.process_time()
    assert len(page_addresses(tmp_path)["pages-1.img"]) == 131_072
    assert time.process_time() - began < 3  # measured: 0.5 s
