"""Image sets that contradict themselves, and those of which real dumps are rare (see tests/system)."""

from __future__ import annotations

from pathlib import Path

import pytest

from ckpt.errors import ObjectCorrupt
from ckpt.host.criu.imagefile import read_entry, write_entries
from ckpt.host.criu.pb import image
from ckpt.host.criu.seccomp_images import layers_in, strip_filters
from ckpt.host.virtual.filter import layer_filter

OURS = layer_filter(7)
FOREIGN = bytes.fromhex("060000000000ff7f")


def write(folder: Path, filters: list[tuple[bytes, int | None]], threads: dict[int, int | None]) -> None:
    task = image.pstree_entry(pid=1, ppid=0, pgid=1, sid=1, threads=list(threads))
    write_entries(folder / "pstree.img", "PSTREE", [task])
    entry = image.seccomp_entry()
    for program, before in filters:
        each = entry.seccomp_filters.add(filter=program)
        if before is not None:
            each.prev = before
    write_entries(folder / "seccomp.img", "SECCOMP", [entry])
    for thread, last in threads.items():
        core = image.core_entry(mtype=1)
        core.thread_core.futex_rla = 0
        core.thread_core.futex_rla_len = 0
        core.thread_core.sched_nice = 0
        core.thread_core.sched_policy = 0
        if last is not None:
            core.thread_core.seccomp_mode = 2
            core.thread_core.seccomp_filter = last
        write_entries(folder / f"core-{thread}.img", "CORE", [core])


def last_of(folder: Path, thread: int) -> int | None:
    core = read_entry(folder / f"core-{thread}.img", "CORE", "core_entry").thread_core
    return core.seccomp_filter if core.HasField("seccomp_filter") else None


def test_chains_are_linked_past_what_is_taken_out(tmp_path: Path) -> None:
    write(
        tmp_path,
        [(OURS, None), (FOREIGN, 0), (OURS, 1), (FOREIGN, 2), (OURS, None)],
        {1: 3, 2: 2, 3: 4, 4: 1, 5: None},
    )
    assert layers_in(tmp_path) == {7}
    assert strip_filters(tmp_path) == 3
    entry = read_entry(tmp_path / "seccomp.img", "SECCOMP", "seccomp_entry")
    assert [each.filter for each in entry.seccomp_filters] == [FOREIGN, FOREIGN]
    assert [each.prev if each.HasField("prev") else None for each in entry.seccomp_filters] == [None, 0]
    assert [last_of(tmp_path, thread) for thread in range(1, 6)] == [1, 0, None, 0, None]


@pytest.mark.parametrize(
    ("filters", "last"),
    [
        ([(OURS, 1), (OURS, 0)], 0),  # a circle
        ([(OURS, 9)], 0),
        ([(OURS, None)], 5),
    ],
)
def test_links_that_lead_nowhere_are_refused(
    tmp_path: Path, filters: list[tuple[bytes, int | None]], last: int
) -> None:
    write(tmp_path, filters, {1: last})
    with pytest.raises(ObjectCorrupt, match="linked wrongly"):
        strip_filters(tmp_path)


def test_images_without_our_filters_are_left_as_they_are(tmp_path: Path) -> None:
    write(tmp_path, [(FOREIGN, None)], {1: 0})
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert strip_filters(tmp_path) == 0
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
