"""The memory of real processes, read while they run, against what CRIU then dumps of them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness.bare_criu import BareCriu
from real.holding import Holder, holding

from ckpt.host import cgroups
from ckpt.host.criu.addresses import page_addresses
from ckpt.host.inspection import snapshot
from ckpt.host.precopy.live import LiveMemory
from ckpt.model.pages import PageRun
from ckpt.model.workload import Tree
from ckpt.units import PAGE_BYTES, Pid

pytestmark = [pytest.mark.system, pytest.mark.usefixtures("criu")]

MIB = 1 << 20
MAKE = """
import random
def address(area):
    return ctypes.addressof((ctypes.c_char * 1).from_buffer(area))
def fill(area, first, count, seed):
    area[first * 4096:(first + count) * 4096] = random.Random(seed).randbytes(count * 4096)
def allocate(pages, flags):
    return mmap.mmap(-1, pages * 4096, flags=flags | mmap.MAP_ANONYMOUS)
"""
KINDS = """
held["own"] = allocate(300, mmap.MAP_PRIVATE)
fill(held["own"], 10, 200, 1)
held["own"][250 * 4096]                     # the page of zeros is mapped there
held["shared"] = allocate(100, mmap.MAP_SHARED)
fill(held["shared"], 30, 20, 2)
fd = os.memfd_create("frames")
os.ftruncate(fd, 64 * 4096 + 100)           # it ends within a page
os.pwrite(fd, b"end", 64 * 4096 + 50)
held["memfd"] = mmap.mmap(fd, 64 * 4096)
fill(held["memfd"], 5, 7, 3)
unmapped = os.memfd_create("unmapped")
os.pwrite(unmapped, b"x" * 4096, 9 * 4096)
with open(sys.executable, "rb") as program:
    held["file"] = mmap.mmap(program.fileno(), 64 * 4096, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
held["file"][::4096]
fill(held["file"], 3, 2, 4)
held["hidden"] = allocate(16, mmap.MAP_PRIVATE)
fill(held["hidden"], 0, 16, 5)
libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
assert libc.mprotect(address(held["hidden"]), 16 * 4096, 0) == 0
for _ in range(3):
    threading.Thread(target=threading.Event().wait, daemon=True).start()
child = os.fork()
if not child:
    held["own"][11 * 4096] = 1
    signal.pause()
answer = json.dumps({
    "at": {name: address(area) // 4096 for name, area in held.items()},
    "memfd": os.fstat(fd).st_ino, "unmapped": os.fstat(unmapped).st_ino,
})
"""
SEGMENT = """
libc.shmat.restype = ctypes.c_void_p
number = libc.shmget(0, 50 * 4096, 0o1600)
place = libc.shmat(number, None, 0)
ctypes.memmove(place + 4096 * 7, random.Random(6).randbytes(4096 * 5), 4096 * 5)
answer = number
"""


class Target:
    """Applies what it is sent, as the other host does."""

    def __init__(self) -> None:
        self.memory: dict[str, dict[int, bytes]] = {}
        self.sent: set[tuple[str, int]] = set()

    def pages(self, space: str, runs: Sequence[PageRun], content: memoryview) -> None:
        assert len(content) <= 4 * MIB
        assert list(runs) == sorted(runs)
        numbers = [page for run in runs for page in range(run.page, run.page + run.count)]
        assert len(content) == len(numbers) * PAGE_BYTES
        for place, page in enumerate(numbers):
            begin = place * PAGE_BYTES
            self.memory.setdefault(space, {})[page] = bytes(content[begin : begin + PAGE_BYTES])
        self.sent.update((space, page) for page in numbers)

    def take_sent(self) -> set[tuple[str, int]]:
        """What was sent since the last call."""
        sent, self.sent = self.sent, set()
        return sent

    def digests(self, space: str) -> tuple[np.ndarray[Any, np.dtype[np.int64]], bytes] | None:
        pages = sorted(self.memory.get(space, {}))
        if not pages:
            return None
        digests = [hashlib.sha256(self.memory[space][page]).digest() for page in pages]
        return np.array(pages, np.int64), b"".join(digests)


@pytest.fixture
def live(tmp_path: Path) -> Iterator[LiveMemory]:
    (tmp_path / "spool").mkdir()
    live = LiveMemory(str(tmp_path / "spool"))
    yield live
    live.close()


@pytest.fixture
def holder() -> Iterator[Holder]:
    with holding() as holder:
        holder.do(MAKE)
        yield holder


def tree_of(holder: Holder, *, without: tuple[Pid, ...] = ()) -> Tree:
    pids = [pid for pid in cgroups.processes_below(holder.cgroup) if pid not in without]
    (tree,) = snapshot.take(pids, holder.cgroup, None).trees
    return tree


def assert_same_as_dumped(target: Target, root: Pid, images: Path) -> int:
    """Every page that CRIU wrote is on the target, byte for byte; gives how many these are."""
    count = 0
    for file, runs in page_addresses(images).items():
        content = (images / file).read_bytes()
        for run in runs:
            theirs = target.memory[f"{root}/{run.space}"]
            for number in range(run.count):
                begin = (run.chunk + number) * PAGE_BYTES
                is_same = theirs[run.page + number] == content[begin : begin + PAGE_BYTES]
                assert is_same, f"page {run.page + number:#x} of {run.space}"
            count += run.count
    return count


def test_each_round_sends_what_changed_and_the_last_makes_it_what_criu_wrote(
    holder: Holder, live: LiveMemory, bare: BareCriu, tmp_path: Path
) -> None:
    told = json.loads(holder.do(KINDS))
    tree, target = tree_of(holder), Target()
    assert len(tree.processes) == 2
    own, child = (f"{tree.root}/pagemap-{process.pid}" for process in tree.processes)
    memfd, unmapped = (f"{tree.root}/pagemap-shmem-{told[name]}" for name in ("memfd", "unmapped"))
    at = told["at"]

    def within(name: str, sent: set[tuple[str, int]], space: str, size: int) -> set[int]:
        return {page - at[name] for where, page in sent if where == space and 0 <= page - at[name] < size}

    count = live.round((tree,), target)
    sent = target.take_sent()
    assert count.scanned_pages == count.changed_pages == len(sent)
    assert within("own", sent, own, 300) == set(range(10, 210))
    assert within("own", sent, child, 300) == set(range(10, 210))
    assert within("file", sent, own, 64) == {3, 4}
    assert within("hidden", sent, own, 16) == set(range(16))
    assert {page for space, page in sent if space == memfd} == {*range(5, 12), 64}
    assert {page for space, page in sent if space == unmapped} == {9}
    [shared] = {space for space, _ in sent} - {own, child, memfd, unmapped}
    assert {page for space, page in sent if space == shared} == set(range(30, 50))

    holder.do(
        "held['own'][100 * 4096] ^= 1; fill(held['own'], 220, 3, 7); held['shared'][33 * 4096 + 4095] ^= 1\n"
        "held['memfd'][4096 * 5] ^= 1; held['file'][9 * 4096] ^= 1; extra = allocate(8, mmap.MAP_PRIVATE)\n"
        "fill(extra, 0, 8, 8); answer = address(extra) // 4096"
    )
    live.round((tree,), target)
    sent = target.take_sent()
    assert within("own", sent, own, 300) == {100, 220, 221, 222}
    assert within("file", sent, own, 64) == {9}
    assert not within("hidden", sent, own, 16)
    assert not {page for space, page in sent if space in (child, unmapped)}
    assert {page for space, page in sent if space == shared} == {33}
    assert {page for space, page in sent if space == memfd} == {5}

    # It writes on and gives memory back, and so does its child.
    holder.do("held['own'][12 * 4096] ^= 1; held['own'].madvise(mmap.MADV_DONTNEED, 20 * 4096, 4096 * 9)")
    bare.dump(tree.root, tmp_path / "images", leave_running=True)
    count = live.finish(tree.root, str(tmp_path / "images"), target)
    assert (own, at["own"] + 12) in target.sent
    assert assert_same_as_dumped(target, tree.root, tmp_path / "images") == count.scanned_pages
    # Nothing that was sent in this way counts as kept.
    assert live.finish(tree.root, str(tmp_path / "images"), Target()) == count


def test_a_tree_in_namespaces_of_its_own_is_named_as_criu_names_it(
    live: LiveMemory, bare: BareCriu, tmp_path: Path
) -> None:
    apart = ("unshare", "--pid", "--ipc", "--fork", "setsid")
    with holding(*apart) as holder:
        number = int(holder.do(MAKE + SEGMENT))
        root = holder.pid
        (outside,) = set(cgroups.processes_below(holder.cgroup)) - {root}
        tree, target = tree_of(holder, without=(outside,)), Target()
        assert (tree.root, tree.processes[0].pid_inside) == (root, 1)
        live.round((tree,), target)
        segment = target.memory[f"{root}/pagemap-shmem-{number}"]
        assert sorted(segment) == list(range(7, 12))
        assert set(target.memory) == {f"{root}/pagemap-1", f"{root}/pagemap-shmem-{number}"}
        bare.dump(root, tmp_path / "images", leave_running=True)
        live.finish(root, str(tmp_path / "images"), target)
        assert_same_as_dumped(target, root, tmp_path / "images")


def test_hardly_anything_is_left_of_a_workload_that_stands_still(
    holder: Holder, live: LiveMemory, bare: BareCriu, tmp_path: Path
) -> None:
    holder.do("held['own'] = allocate(25600, mmap.MAP_PRIVATE); fill(held['own'], 0, 25600, 1)")
    holder.do("held['shared'] = allocate(12800, mmap.MAP_SHARED); fill(held['shared'], 0, 12800, 2)")
    tree, target = tree_of(holder), Target()
    live.round((tree,), target)
    bare.dump(tree.root, tmp_path / "images", leave_running=True)
    count = live.finish(tree.root, str(tmp_path / "images"), target)
    assert count.scanned_pages > 150 * MIB / PAGE_BYTES
    assert count.changed_pages <= count.scanned_pages * 0.001
    assert_same_as_dumped(target, tree.root, tmp_path / "images")


def test_what_the_target_has_by_its_digest_is_not_sent(holder: Holder, tmp_path: Path) -> None:
    holder.do("held['own'] = allocate(2000, mmap.MAP_PRIVATE); fill(held['own'], 0, 2000, 1)")
    at = int(holder.do("answer = address(held['own']) // 4096"))
    tree, target = tree_of(holder), Target()
    space = f"{tree.root}/pagemap-{tree.root}"

    def sent_of_area(live: LiveMemory) -> set[int]:
        live.round((tree,), target)
        return {page - at for where, page in target.take_sent() if where == space and 0 <= page - at < 2000}

    for attempt, expected in (("first", set(range(2000))), ("second", {5}), ("third", set())):
        (tmp_path / attempt).mkdir()
        live = LiveMemory(str(tmp_path / attempt), known=target)
        assert sent_of_area(live) == expected
        # It is compared with from then on, though it was not sent.
        assert sent_of_area(live) == set()
        live.close()
        if attempt == "first":
            holder.do("held['own'][5 * 4096] ^= 1")


def test_tasks_that_end_and_map_and_unmap_meanwhile_disturb_no_round(
    holder: Holder, live: LiveMemory, bare: BareCriu, tmp_path: Path
) -> None:
    holder.do("held['own'] = allocate(20000, mmap.MAP_PRIVATE); fill(held['own'], 0, 20000, 1)")
    holder.do(
        "def churn():\n"
        "    number = 0\n"
        "    while not held.get('enough'):\n"
        "        number += 1\n"
        "        area = allocate(2000, mmap.MAP_PRIVATE); fill(area, 0, 2000, number); area.close()\n"
        "        fill(held['own'], number % 19000, 50, number)\n"
        "        held['own'].madvise(mmap.MADV_DONTNEED, (number * 7 % 19000) * 4096, 99 * 4096)\n"
        "        os.waitpid(os.posix_spawn('/bin/true', ['true'], {}), 0)\n"
        "held['thread'] = threading.Thread(target=churn); held['thread'].start()"
    )
    target = Target()
    for _ in range(8):
        live.round((tree_of(holder),), target)
    holder.do("held['enough'] = True; held['thread'].join()")
    root = holder.pid
    bare.dump(root, tmp_path / "images", leave_running=True)
    live.finish(root, str(tmp_path / "images"), target)
    assert_same_as_dumped(target, root, tmp_path / "images")
    gone = tree_of(holder)
    holder.end()
    assert live.round((gone,), target).scanned_pages == 0
    assert os.listdir(tmp_path / "spool") == []
