"""A workload goes on at another host before its memory: all of it comes, and where it cannot, nothing runs on without."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from harness.cgroups import Cgroup
from harness.command import Ckpt
from harness.traces import Traces
from harness.waiting import await_condition
from real.counting import Counter
from real.leftovers import words_of
from real.migrating import MigrationBed
from real.under_way import UnderWay, is_stopped

pytestmark = pytest.mark.system

# A parent and a child, both with memory of which they know every page. They look at it in an order of their own, and
# meanwhile do what changes memory: they fork, move, give back and unmap. What they find wrong they say, and end.
BUSY = """
import mmap, os, random, sys, time
log, mib = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644), int(sys.argv[2])
PAGES = mib << 8
size = PAGES * 4096
area = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
moved = mmap.mmap(-1, size // 4, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
dropped = mmap.mmap(-1, size // 4, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
shared = mmap.mmap(-1, 1 << 20)
generation = 0
def word(kind, page):
    return b"%s %d of %d." % (kind, page, generation)
def fill(memory, kind, step=1):
    for page in range(0, len(memory) // 4096, step):
        content = word(kind, page)
        memory[page * 4096 : page * 4096 + len(content)] = content
def say(text):
    os.write(log, text.encode() + b"\\n")
def check(memory, kind, page, step=1):
    content = word(kind, page) if page % step == 0 else bytes(16)
    found = memory[page * 4096 : page * 4096 + len(content)]
    if found != content:
        say(f"wrong {os.getpid()}: {found!r} is not {content!r}")
        os._exit(1)
fill(area, b"area")
fill(moved, b"moved", 3)
fill(dropped, b"dropped")
fill(shared, b"shared")
if not os.fork():
    generation = 1
    fill(area, b"area")
    fill(moved, b"moved", 3)
    fill(dropped, b"dropped")
draw = random.Random(generation)
say("ready")
while not os.path.exists(sys.argv[1] + ".go"):
    time.sleep(0.01)
if not os.fork():
    for _ in range(300):
        check(area, b"area", draw.randrange(PAGES))
    os._exit(0)
dropped.madvise(mmap.MADV_DONTNEED, 0, len(dropped) // 2)
moved.resize(len(moved) * 8)
for page in draw.sample(range(PAGES), PAGES):
    check(area, b"area", page)
for page in range(PAGES // 4):
    check(moved, b"moved", page, 3)
for page in range(PAGES // 8, PAGES // 4):
    check(dropped, b"dropped", page)
if any(dropped[page * 4096] for page in range(PAGES // 8)):
    say("wrong: what was given back is there again")
saved = generation
generation = 0
for page in range(256):
    check(shared, b"shared", page)
generation = saved
if os.wait()[1] if generation else 0:
    say("wrong: a child ended otherwise")
say(f"whole {generation}")
while True:
    time.sleep(1)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Busy:
    """The program as a job, and what it has said."""

    job: str
    log: Path

    def lines(self) -> list[str]:
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        assert not any(line.startswith("wrong") for line in lines), lines
        return lines

    def go(self) -> None:
        """Let it look at all its memory, and change it."""
        Path(f"{self.log}.go").touch()

    def await_lines(self, *wanted: str) -> None:
        await_condition(
            lambda: all(self.lines().count(line) >= wanted.count(line) for line in wanted),
            lambda: f"{wanted}; there is {self.lines()}",
            timeout_s=60,
        )


@pytest.fixture
def bed(traces: Traces, ckpt: Ckpt) -> MigrationBed:
    return MigrationBed(traces, ckpt)


@pytest.fixture
def counter(bed: MigrationBed) -> Counter:
    return bed.start_counter(bed.source)


def start_busy(bed: MigrationBed, ckpt: Ckpt, folder: Path, mib: int) -> Busy:
    busy = Busy(job=ckpt.new_job_name(), log=folder / "busy.log")
    program = folder / "busy.py"
    program.write_text(BUSY)
    command = (sys.executable, "-I", "-S", program, busy.log, mib)
    output = folder / "busy.out"
    bed.source.ckpt(ckpt, "run", "--detach", "--name", busy.job, "--log", output, "--", *command)
    busy.await_lines("ready", "ready")
    return busy


def test_a_counter_goes_on_before_its_memory_and_all_of_it_comes(bed: MigrationBed, counter: Counter) -> None:
    moved = bed.migrate(counter.job, "--lazy")
    assert moved["lazy"]
    assert moved["total_ms"] >= moved["downtime_ms"]
    # It looks at each page again once a second.
    counter.await_more(2000)
    bed.assert_one_copy(counter, bed.target)
    bed.await_nothing_left(counter)
    # With all memory there it is a job like any other, which can be moved on.
    bed.migrate(counter.job, "--lazy", source=bed.target)
    counter.await_more(2000)
    bed.assert_one_copy(counter, bed.source)
    bed.await_nothing_left(counter)


def test_processes_that_fork_and_change_their_memory_meanwhile_find_all_of_it(
    bed: MigrationBed, ckpt: Ckpt, traces: Traces
) -> None:
    busy = start_busy(bed, ckpt, traces.folder, 48)
    migration = bed.start_migration(busy.job, "--lazy", failpoint="running:SIGSTOP")
    migration.await_stopped()
    busy.go()
    go_on(migration)
    ended = migration.wait()
    assert ended.exit_code == 0, ended
    busy.await_lines("whole 0", "whole 1")
    bed.target.ckpt(ckpt, "stop", busy.job)


def stopped_after_the_word(bed: MigrationBed, counter: Counter) -> UnderWay:
    """A migration whose source stands still from when the target runs: pages come no more."""
    migration = bed.start_migration(counter.job, "--lazy", failpoint="running:SIGSTOP", silence_s=3)
    migration.await_stopped()
    return migration


@pytest.fixture
def heavy(bed: MigrationBed) -> Counter:
    """A counter with so much memory that it cannot be there before the word that it runs."""
    return bed.start_counter(bed.source, prologue="ballast = b'x' * (256 << 20)")


def go_on(migration: UnderWay) -> None:
    controller = migration.controller

    def goes_on() -> bool:
        # nsenter stops a moment after its child; a word before that would be lost.
        migration.go_on()
        return not is_stopped(controller)

    await_condition(goes_on, "the source to go on")


def on_target(bed: MigrationBed, *words: bytes) -> int:
    """The one process on the target whose command line has these words."""
    found = [pid for pid in bed.target.own.pids() if set(words) <= set(words_of(pid))]
    assert len(found) == 1, (words, [words_of(pid) for pid in bed.target.own.pids()])
    return found[0]


def kill_the_source(_bed: MigrationBed, migration: UnderWay) -> None:
    migration.kill()


def kill_the_keeper(bed: MigrationBed, _migration: UnderWay) -> None:
    os.kill(on_target(bed, b"agent", b"--pages"), signal.SIGKILL)


def say_nothing(_bed: MigrationBed, _migration: UnderWay) -> None:
    """The source stands still, and so does everything that it would say."""


@pytest.mark.parametrize("fault", [kill_the_source, kill_the_keeper, say_nothing])
def test_what_cannot_have_its_memory_any_more_is_ended_and_does_not_run_on_with_zeros(
    fault: Callable[[MigrationBed, UnderWay], None], bed: MigrationBed, heavy: Counter
) -> None:
    counter = heavy
    migration = stopped_after_the_word(bed, counter)
    # By its cgroup: also what ps(1) shows of it may be memory that has not come.
    there = Cgroup(bed.target.cgroup.path / "ckpt" / counter.job)
    assert there.pids()
    fault(bed, migration)
    await_condition(lambda: not there.pids(), "the copy on the target to end")
    if fault is kill_the_source:
        migration.wait()
    else:
        go_on(migration)
        ended = migration.wait()
        assert ended.exit_code == 53, ended
        assert ended.document["error"]["slug"] == "pages-lost"
    # Nothing that it read was wrong, and the source's copy has not gone on.
    counter.check()
    await_condition(lambda: not everywhere(bed, counter), lambda: f"{everywhere(bed, counter)} to end")
    told = bed.recover(bed.source)
    if fault is kill_the_source:
        assert "lost" in str(told), told
    bed.recover(bed.target)
    bed.target.ckpt(bed.ckpt, "rm-job", counter.job)
    bed.await_nothing_left()


def everywhere(bed: MigrationBed, counter: Counter) -> tuple[int, ...]:
    copies = bed.copies_alive(counter)
    return copies.running + copies.frozen
