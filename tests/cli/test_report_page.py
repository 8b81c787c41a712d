"""The page of `ckpt report` where a checkpoint lies: names that look like the page's own, mappings without bounds."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from fakes.checkpoints import a_checkpoint
from fakes.values import a_process, a_tree, an_image_file

from ckpt.cli import report, report_page
from ckpt.cli.report_page import document, page
from ckpt.errors import OsRefused
from ckpt.flow.pages import StoredSpace, compare_pages
from ckpt.flow.report import Moment, Picture
from ckpt.model.changes import PageCounts
from ckpt.model.memory import AddressSpace, Area, AreaKind, PageRun, PageState
from ckpt.model.reports import StoredCheckpoint
from ckpt.units import PAGE_BYTES, ByteCount, CheckpointId, Pid

ROOT = Pid(7)


def a_picture(*areas: Area, runs: tuple[PageRun, ...] = (), name: str = "web") -> Picture:
    plain = a_checkpoint(an_image_file("core-7.img"))
    tree = replace(a_tree(ROOT, children=0), processes=(replace(a_process(ROOT), name=name),))
    stored = StoredCheckpoint(
        id=CheckpointId("ab" * 32),
        checkpoint=replace(plain, workload=replace(plain.workload, trees=(tree,))),
        tags=(),
        stored_bytes=ByteCount(0),
    )
    space = AddressSpace(name="pagemap-7", pids=(ROOT,), pages_file="", areas=areas, runs=runs)
    return Picture(
        moments=(Moment(stored=stored, before=None, pages=PageCounts()),),
        contents=(),
        spaces=((ROOT, compare_pages(StoredSpace(space=space, digests=b""), None)),),
    )


def an_area(first: int, pages: int) -> Area:
    return Area(
        start=first * PAGE_BYTES,
        end=(first + pages) * PAGE_BYTES,
        permissions="rw-p",
        kind=AreaKind.ANONYMOUS,
        path="",
        offset=0,
        shared=None,
    )


@pytest.mark.parametrize("name", ["@SCRIPT@", "@DATA@", "</script><script>", "\u2028\udc80"])
def test_no_name_is_taken_for_a_part_of_the_page(name: str) -> None:
    text = page(a_picture(name=name))
    _, data = text.split('id="data">', 1)
    assert json.loads(data.split("</script>", 1)[0])["processes"][0]["name"] == name
    assert text.count('"use strict";') == 1
    assert text.count("</script>") == 2


def test_zeros_without_bounds_are_counted_and_only_some_are_drawn() -> None:
    pages = 1 << 51
    picture = a_picture(an_area(0, pages), runs=(PageRun(page=0, count=pages, chunk=None),))
    (area,) = document(picture)["spaces"][0]["areas"]
    assert not area["whole"]
    assert area["counts"][PageState.ZERO] == area["stored_pages"] == pages
    assert len(area["states"]) < 10_000


def test_many_large_mappings_are_drawn_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_page, "PAGES_DRAWN_IN_ALL_MAX", 1000)
    (space,) = document(a_picture(an_area(0, 600), an_area(600, 600), an_area(1200, 400)))["spaces"]
    assert [area["whole"] for area in space["areas"]] == [True, False, True]
    assert space["counts"][PageState.ABSENT] == 1600


def test_what_is_no_regular_file_is_never_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OsRefused, match="not a regular file"):
        report._write(str(tmp_path / "fifo"), b"")
    assert os.listdir(tmp_path) == ["fifo"]
