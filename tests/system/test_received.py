"""Real process trees restored by real CRIU from what came in rounds: every byte as it was, and shared as it was."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.bare_criu import BareCriu
from harness.processes import descendants, thread_count
from harness.subjects import Workload
from harness.waiting import await_condition

from ckpt.host.criu.addresses import page_addresses
from ckpt.host.received.images import ReceivedImages
from ckpt.model.pages import PageRun
from ckpt.units import PAGE_BYTES, Pid

pytestmark = pytest.mark.system

MIB = 1 << 20

# Every process keeps the digests of all its memory in its heap. At each signal it takes them again, and writes what
# it finds into a file of its own.
PROGRAM = """
import ctypes, hashlib, json, mmap, os, random, signal, sys, threading, time

MIB, folder, source = 1 << 20, sys.argv[1], sys.argv[2]
libc = ctypes.CDLL(None, use_errno=True)
libc.shmat.restype = ctypes.c_void_p
libc.shmat.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_int)


def fill(area, seed, step=1):
    draw = random.Random(seed)
    for page in range(0, len(area) // 4096, step):
        area[page * 4096 : page * 4096 + 4096] = draw.randbytes(4096)


def attached(size):
    number = libc.shmget(0, size, 0o1600)
    address = libc.shmat(number, None, 0)
    return memoryview((ctypes.c_char * size).from_address(address)).cast("B")


private = mmap.mmap(-1, 6 * MIB, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
sparse = mmap.mmap(-1, 16 * MIB, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
shared = mmap.mmap(-1, 4 * MIB, mmap.MAP_SHARED | mmap.MAP_ANONYMOUS)
memfd = os.memfd_create("frames")
os.ftruncate(memfd, 3 * MIB)
frames = mmap.mmap(memfd, 2 * MIB, offset=MIB)
segment = attached(2 * MIB)
with open(source, "rb") as file:
    copied = mmap.mmap(file.fileno(), MIB, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)
for seed, area in enumerate((private, shared, frames, segment)):
    fill(area, seed)
fill(sparse, 8, 7)
fill(shared, 10, 3)
fill(copied, 9, 5)
areas = {
    "private": private, "sparse": sparse, "shared": shared, "frames": frames, "segment": segment, "copied": copied
}

generation = os.fork() and 1
if not generation:
    # A child that has changed some of what it shares with its parent, and a grandchild.
    fill(private, 11, 4)
    generation = os.fork() and 2
    if not generation:
        fill(sparse, 12, 21)
        generation = 3


def digests():
    return {name: hashlib.sha256(area).hexdigest() for name, area in areas.items()}


threads = [threading.Thread(target=threading.Event().wait, daemon=True) for _ in range(2)]
for thread in threads:
    thread.start()
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
# The others have their own pages when all have reported; the shared ones do not change any more.
kept = digests()
while True:
    now = digests()
    said = {
        "pid": os.getpid(),
        "wrong": [name for name in areas if kept[name] != now[name]],
        "threads": sum(thread.is_alive() for thread in threads),
        "at": ctypes.addressof(ctypes.c_char.from_buffer(private)),
    }
    with open(f"{folder}/said-{generation}.new", "w") as file:
        json.dump(said, file)
    os.replace(f"{folder}/said-{generation}.new", f"{folder}/said-{generation}")
    signal.sigwait([signal.SIGUSR1])
"""


class Family:
    """A process, its child and its grandchild, with memory of every kind."""

    generations = (1, 2, 3)

    def __init__(self, workload: Workload, folder: Path) -> None:
        self._folder = folder
        folder.mkdir()
        (folder / "program.py").write_text(PROGRAM)
        (folder / "source").write_bytes(random.Random(5).randbytes(MIB))
        # CRIU dumps System V memory only with the namespace that it is in, which ends with the program.
        command = [
            "unshare",
            "--ipc",
            sys.executable,
            str(folder / "program.py"),
            str(folder),
            str(folder / "source"),
        ]
        self.pid = workload.spawn(command, folder)
        self._await_said()

    def check(self) -> None:
        """All bytes are what they were, in every process, and the threads are there."""
        pids = descendants(self.pid)
        assert len(pids) == len(self.generations)
        for generation in self.generations:
            self._path(generation).unlink()
        for pid in pids:
            os.kill(pid, signal.SIGUSR1)
        self._await_said()
        for generation in self.generations:
            said = self._said(generation)
            assert (said["wrong"], said["threads"]) == ([], 2), f"generation {generation}"
            assert thread_count(said["pid"]) == 3

    def shared_pages(self, generation: int) -> int:
        """How many pages of the private area a process shares with its relatives."""
        said = self._said(generation)
        found, count = False, 0
        for line in Path(f"/proc/{said['pid']}/smaps").read_text().splitlines():
            word = line.split()[0]
            if "-" in word and not word.endswith(":"):
                low, high = (int(part, 16) for part in word.split("-"))
                found = low <= said["at"] < high
            elif found and word in {"Shared_Clean:", "Shared_Dirty:"}:
                count += int(line.split()[1]) * 1024 // PAGE_BYTES
        return count

    def _await_said(self) -> None:
        def all_said() -> bool:
            return all(self._path(generation).exists() for generation in self.generations)

        await_condition(all_said, lambda: (self._folder / "out").read_text() or "all to look at their memory")

    def _said(self, generation: int) -> dict:
        return json.loads(self._path(generation).read_text())

    def _path(self, generation: int) -> Path:
        return self._folder / f"said-{generation}"


def pages_of(images: Path) -> Iterator[tuple[str, int, bytes]]:
    """The space, the number and the content of each page of an image set."""
    for pages_file, runs in page_addresses(images).items():
        content = (images / pages_file).read_bytes()
        for run in runs:
            for step in range(run.count):
                at = (run.chunk + step) * PAGE_BYTES
                yield run.space, run.page + step, content[at : at + PAGE_BYTES]


def send(received: ReceivedImages, root: int, pages: list[tuple[str, int, bytes]]) -> None:
    """As a source does: space after space, ascending, in messages of at most 4 MiB."""
    for space in sorted({space for space, _, _ in pages}):
        of_space = sorted((number, content) for each, number, content in pages if each == space)
        for begin in range(0, len(of_space), 1024):
            message = of_space[begin : begin + 1024]
            runs = [PageRun(number, 1) for number, _ in message]
            received.pages(f"{root}/{space}", runs, b"".join(content for _, content in message))


def send_files(received: ReceivedImages, root: int, images: Path) -> list[str]:
    names = [path.name for path in images.iterdir() if path.suffix == ".img" and "pages-" not in path.name]
    for name in names:
        content = (images / name).read_bytes()
        for offset in range(0, len(content) or 1, MIB):
            received.write_file(Pid(root), name, 0o600, offset, content[offset : offset + MIB])
    return names


@pytest.fixture
def family(workload: Workload, tmp_path: Path) -> Family:
    return Family(workload, tmp_path / "program")


@pytest.mark.parametrize("rounds", [1, 3, 8])
def test_a_tree_restored_from_rounds_has_every_byte_and_shares_what_it_shared(
    rounds: int, family: Family, workload: Workload, bare: BareCriu, tmp_path: Path
) -> None:
    family.check()
    shared = [family.shared_pages(generation) for generation in family.generations]
    dumped = tmp_path / "dumped"
    bare.dump(family.pid, dumped, leave_running=False)
    workload.await_empty()

    draw = random.Random(rounds)
    pages = list(pages_of(dumped))
    right: set[tuple[str, int]] = set()
    place = str(tmp_path / "received")
    received = ReceivedImages(place)
    for number in range(rounds - 1):
        # Some pages that are already as they will be, some that will change, and some that will be gone.
        some = [page for page in pages if draw.random() < 0.4]
        stale = {(space, at) for space, at, _ in some if draw.random() < 0.3}
        gone = [(space, at + (1 << 36), content) for space, at, content in some if draw.random() < 0.1]
        old = [(s, at, draw.randbytes(PAGE_BYTES) if (s, at) in stale else c) for s, at, c in some]
        send(received, family.pid, old + gone)
        right = (right | {(space, at) for space, at, _ in some}) - stale
        received.end_round()
        if number == 1:
            received = ReceivedImages(place)
    send(received, family.pid, [page for page in pages if page[:2] not in right])
    names = send_files(received, family.pid, dumped)
    for path in dumped.glob("*.img"):
        path.unlink()
    received.settle()

    # What is durable is restored by another process, and again when that one was killed.
    for attempt in range(2):
        images = tmp_path / f"images-{attempt}"
        images.mkdir()
        ReceivedImages(place).lay_out(Pid(family.pid), str(images), names)
        if rounds > 1:
            assert (images / "parent/parent").exists()
        assert bare.restore(images) == family.pid
        family.check()
        # Pages that the child had changed are not shared; all others are again.
        assert [family.shared_pages(generation) for generation in family.generations] == shared
        workload.kill()
    ReceivedImages(place).remove()
    assert not os.path.exists(place)
