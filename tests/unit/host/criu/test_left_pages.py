"""What CRIU marks as fit to come later is left out, and the page map says so as that of a lazy dump does."""

from __future__ import annotations

from pathlib import Path

import pytest

from ckpt.errors import ObjectCorrupt
from ckpt.host.criu.imagefile import write_entries
from ckpt.host.criu.lazy_pages import lazy_runs
from ckpt.host.criu.left_pages import pages_to_leave
from ckpt.host.criu.page_maps import MapEntry, Where, read_lazy_map, write_map
from ckpt.host.criu.pb import image
from ckpt.model.memory import PageRun
from ckpt.model.pages import PageRun as Pages
from ckpt.units import PAGE_BYTES, Pid

BOTH = Where.LAZY | Where.HERE


def run(page: int, count: int, chunk: int) -> PageRun:
    return PageRun(page=page, count=count, chunk=chunk)


def test_what_is_marked_is_left_and_the_rest_moves_together(tmp_path: Path) -> None:
    path = tmp_path / "pagemap-7.img"
    write_map(
        path,
        3,
        [
            MapEntry(10, 2, Where.HERE),
            MapEntry(12, 5, BOTH),
            MapEntry(20, 1, Where.HERE),
            MapEntry(30, 4, BOTH),
        ],
    )
    [found] = pages_to_leave(tmp_path)
    assert (found.pid, found.pages_file, found.page_count) == (7, "pages-3.img", 12)
    assert found.present == (run(10, 2, 0), run(20, 1, 7))
    assert found.left == (run(12, 5, 2), run(30, 4, 8))
    found.leave()
    assert read_lazy_map(path) == (3, [Pages(10, 2), Pages(20, 1)], [Pages(12, 5), Pages(30, 4)])
    assert lazy_runs(tmp_path, Pid(7)) == [Pages(12, 5), Pages(30, 4)]


def test_shared_memory_and_maps_without_marks_stay_as_they_are(tmp_path: Path) -> None:
    write_map(tmp_path / "pagemap-shmem-7.img", 1, [MapEntry(0, 2, BOTH)])
    write_map(tmp_path / "pagemap-8.img", 2, [MapEntry(10, 2, Where.HERE)])
    older = image.pagemap_entry(vaddr=4 * PAGE_BYTES, compat_nr_pages=2)
    write_entries(tmp_path / "pagemap-9.img", "PAGEMAP", [image.pagemap_head(pages_id=4), older])
    assert pages_to_leave(tmp_path) == ()


@pytest.mark.parametrize(
    "entries",
    [
        [MapEntry(10, 2, BOTH), MapEntry(11, 1, BOTH)],
        [MapEntry(10, 2, BOTH), MapEntry(5, 1, Where.HERE)],
        [MapEntry(10, 2, Where.LAZY)],
        [MapEntry(10, 2, Where.PARENT)],
    ],
)
def test_pages_that_the_pages_file_does_not_have_in_order_are_refused(
    entries: list[MapEntry], tmp_path: Path
) -> None:
    write_map(tmp_path / "pagemap-7.img", 1, entries)
    with pytest.raises(ObjectCorrupt, match=r"pagemap-7\.img"):
        pages_to_leave(tmp_path)
