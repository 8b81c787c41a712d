"""Real programs, dumped and restored by the command as its users call it, and asked from inside."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness.cgroups import Cgroup
from harness.command import Ckpt
from harness.pauses import Pauses
from harness.processes import (
    cgroup_of,
    is_dead,
    namespace_of,
    start_ticks,
    time_offsets,
)
from harness.subjects import PROGRAMS, Program, Tree, Workload
from harness.ticks import TickLog
from harness.waiting import await_condition

pytestmark = pytest.mark.system

Document = dict[str, Any]

DUMP_KEYS = {
    "id",
    "job",
    "frozen_ms",
    "dump_ms",
    "total_ms",
    "image_bytes",
    "new_bytes",
    "stored_bytes",
    "trees",
    "parent",
}
RESTORE_KEYS = {"id", "job", "pid", "pids", "cgroup", "restore_ms", "total_ms"}


def check_dump(document: Document, *, trees: int = 1) -> None:
    """The document says what CLI.md promises, and its numbers can be true."""
    assert document.keys() >= DUMP_KEYS
    assert 0 < document["frozen_ms"] <= document["total_ms"]
    assert 0 < document["dump_ms"] <= document["total_ms"]
    assert document["image_bytes"] > 0
    assert document["stored_bytes"] > 0
    assert document["new_bytes"] >= 0
    assert len(document["trees"]) == trees
    assert all(tree["tasks"] >= 1 for tree in document["trees"])


def check_restore(document: Document, checkpoint: str) -> None:
    """The document says what CLI.md promises, and the processes that it names are there."""
    assert document.keys() >= RESTORE_KEYS
    assert document["id"] == checkpoint
    assert document["pid"] in document["pids"]
    assert not any(is_dead(pid) for pid in document["pids"])
    assert all(cgroup_of(pid).is_relative_to(document["cgroup"]) for pid in document["pids"])
    assert 0 < document["restore_ms"] <= document["total_ms"]


@pytest.mark.parametrize("kind", PROGRAMS)
def test_a_program_that_was_dumped_and_stopped_goes_on_when_restored_twice_in_a_row(
    kind: str, workload: Workload, ckpt: Ckpt
) -> None:
    program = workload.start(kind)
    job = ckpt.new_job_name()
    cgroup = workload.cgroup
    for _ in range(2):
        dumped = ckpt("dump", "--cgroup", cgroup, "--name", job, "--stop")
        check_dump(dumped)
        assert dumped["job"] == job
        assert dumped["trees"][0]["pid"] == program.pid
        assert not cgroup.pids(), "--stop left processes"

        restored = ckpt("restore", dumped["id"])
        check_restore(restored, dumped["id"])
        assert restored["job"] == job
        assert restored["pid"] == program.pid
        workload.check()
        cgroup = Cgroup(Path(restored["cgroup"]))


@pytest.mark.parametrize("kind", PROGRAMS)
def test_a_program_that_was_dumped_runs_on_and_can_be_taken_back(
    kind: str, workload: Workload, ckpt: Ckpt
) -> None:
    program = workload.start(kind)
    program.remember()
    pids = {pid: start_ticks(pid) for pid in [program.pid]}
    dumped = ckpt("dump", "--cgroup", workload.cgroup, "--name", ckpt.new_job_name())
    check_dump(dumped)
    workload.check()
    assert {pid: start_ticks(pid) for pid in pids} == pids
    assert not workload.cgroup.is_frozen()

    # A crash.
    workload.kill()
    if program.can_go_back:
        restored = ckpt("restore", dumped["id"])
        check_restore(restored, dumped["id"])
        program.was_taken_back()
        workload.check()
    else:
        # Its files went on without it: to take it back alone would leave it with a future that it never had.
        error = ckpt("restore", dumped["id"], exit_code=32)["error"]
        assert str(program.folder / "data.txt") in error["message"]
        assert not workload.pids()


def test_two_unrelated_trees_in_one_cgroup_come_back_on_the_same_clocks(
    workload: Workload, ckpt: Ckpt
) -> None:
    first, second = workload.start("clocks"), workload.start("clocks")
    dumped = ckpt("dump", "--cgroup", workload.cgroup, "--name", ckpt.new_job_name(), "--stop")
    check_dump(dumped, trees=2)
    restored = ckpt("restore", dumped["id"])
    assert {first.pid, second.pid} <= set(restored["pids"])
    workload.check()

    offsets = [time_offsets(program.pid) for program in (first, second)]
    for clock in ("monotonic", "boottime"):
        assert abs(offsets[0][clock] - offsets[1][clock]) < 1_000_000
    # As they see it themselves: CLOCK_REALTIME is the same for both, so it measures the others.
    for clock in ("monotonic_ns", "boottime_ns"):
        assert abs(distance(first, clock) - distance(second, clock)) < 1_000_000


def distance(program: Program, clock: str) -> int:
    """How far a clock is behind CLOCK_REALTIME, in nanoseconds; the least of what 20 ticks say.

    A tick reads the clocks one after the other: what comes between makes the distance greater, never less.
    """
    return min(tick["realtime_ns"] - tick[clock] for tick in program.log.ticks()[-20:])


def test_a_tree_named_by_its_pid_leaves_what_runs_beside_it_alone(workload: Workload, ckpt: Ckpt) -> None:
    program, bystander = workload.start("tree"), workload.start("clocks")
    before = start_ticks(bystander.pid)
    job = ckpt.new_job_name()

    left_running = ckpt("dump", "--pid", program.pid, "--name", job)
    check_dump(left_running)
    assert left_running["trees"][0]["pid"] == program.pid
    assert left_running["trees"][0]["tasks"] >= Tree.processes_min
    assert cgroup_of(program.pid) == cgroup_of(bystander.pid) == workload.cgroup.path
    workload.check()

    dumped = ckpt("dump", "--pid", program.pid, "--name", job, "--stop")
    assert workload.cgroup.pids() == [bystander.pid]
    bystander.await_progress()
    restored = ckpt("restore", dumped["id"])
    check_restore(restored, dumped["id"])
    workload.check()
    assert start_ticks(bystander.pid) == before
    assert cgroup_of(bystander.pid) == workload.cgroup.path


def test_a_program_in_nobodys_cgroup_is_dumped_by_its_pid_and_put_back(
    workload: Workload, ckpt: Ckpt
) -> None:
    program = workload.start("tree")
    root = workload.cgroup.path.parent
    for pid in workload.pids():
        (root / "cgroup.procs").write_text(str(pid))
    check_dump(ckpt("dump", "--pid", program.pid, "--name", ckpt.new_job_name()))
    assert cgroup_of(program.pid) == root
    workload.check()


def test_two_copies_of_one_checkpoint_run_at_once_in_pid_namespaces_of_their_own(
    workload: Workload, ckpt: Ckpt
) -> None:
    program = workload.start("clocks")
    dumped = ckpt("dump", "--cgroup", workload.cgroup, "--name", ckpt.new_job_name())
    workload.kill()
    before = program.log.ticks()

    restored = ckpt("restore", dumped["id"], "--pids", "new", "--count", 2)["restored"]
    assert len(restored) == 2
    for document in restored:
        check_restore(document, dumped["id"])
    pids = [document["pid"] for document in restored]
    assert len({*pids, program.pid}) == 3
    namespaces = {namespace_of(pid, "pid") for pid in pids}
    assert len(namespaces) == 2
    assert namespace_of(os.getpid(), "pid") not in namespaces
    assert len({document["cgroup"] for document in restored}) == 2
    assert len({document["job"] for document in restored}) == 2

    # Both write to the same log: every tick from the checkpoint on comes twice, by the pid of before.
    def new_ticks() -> list[int]:
        return [tick["tick"] for tick in program.log.ticks()[len(before) :]]

    await_condition(lambda: len(new_ticks()) > 60, "60 ticks of the two copies")
    ticks = new_ticks()
    first = min(ticks)
    settled = range(first, min(max(ticks), first + 20))
    assert [ticks.count(number) for number in settled] == [2] * len(settled)
    assert {tick["pid"] for tick in program.log.ticks()} == {program.pid}


def test_a_copy_beside_the_running_original_runs_in_a_pid_namespace_of_its_own(
    workload: Workload, ckpt: Ckpt
) -> None:
    program = workload.start("clocks")
    dumped = ckpt("dump", "--cgroup", workload.cgroup, "--name", ckpt.new_job_name())
    restored = ckpt("restore", dumped["id"], "--pids", "new")
    check_restore(restored, dumped["id"])
    assert restored["pid"] != program.pid
    assert namespace_of(restored["pid"], "pid") != namespace_of(program.pid, "pid")
    assert not is_dead(program.pid)


def test_a_restore_with_the_same_pids_is_refused_while_another_process_has_one(
    workload: Workload, ckpt: Ckpt
) -> None:
    program = workload.start("clocks")
    dumped = ckpt("dump", "--cgroup", workload.cgroup, "--name", ckpt.new_job_name())
    before = workload.pids()
    error = ckpt("restore", dumped["id"], "--pids", "same", exit_code=31)["error"]
    assert str(program.pid) in error["message"]
    assert "clocks" in error["message"]
    assert workload.pids() == before
    workload.check()


def test_a_workload_restored_into_a_cgroup_of_the_users_choice_is_there(
    workload: Workload, new_workload: Callable[[], Workload], ckpt: Ckpt
) -> None:
    workload.start("shell")
    dumped = ckpt("dump", "--cgroup", workload.cgroup, "--name", ckpt.new_job_name(), "--stop")
    chosen = new_workload().cgroup
    restored = ckpt("restore", dumped["id"], "--cgroup", chosen)
    assert Path(restored["cgroup"]) == chosen.path
    check_restore(restored, dumped["id"])
    assert set(restored["pids"]) <= set(chosen.pids())
    workload.check()


def test_a_cgroup_below_another_is_dumped_and_restored_with_it(workload: Workload, ckpt: Ckpt) -> None:
    upper, lower = workload.start("clocks"), workload.start("clocks")
    below = workload.cgroup.path / "below"
    below.mkdir()
    (below / "cgroup.procs").write_text(str(lower.pid))
    dumped = ckpt("dump", "--cgroup", workload.cgroup, "--name", ckpt.new_job_name(), "--stop")
    check_dump(dumped, trees=2)
    restored = ckpt("restore", dumped["id"])
    assert cgroup_of(upper.pid) == Path(restored["cgroup"])
    assert cgroup_of(lower.pid) == Path(restored["cgroup"]) / "below"
    workload.check()


def test_a_checkpoint_is_restored_from_another_store_path_given_on_the_command_line(
    workload: Workload, ckpt: Ckpt, tmp_path: Path
) -> None:
    workload.start("clocks")
    store = tmp_path / "elsewhere"
    done = ckpt.run(
        "--store", store, "--json", "dump", "--cgroup", workload.cgroup, "--tag", "kept", "--stop"
    )
    assert done.returncode == 0, done.stderr
    assert store.is_dir()
    assert not ckpt.store.exists()
    done = ckpt.run("--store", store, "--json", "restore", "kept")
    assert done.returncode == 0, done.stderr
    workload.check()


def test_a_workload_stands_still_no_longer_than_the_dump_says(
    workload: Workload, ckpt: Ckpt, pauses: Pauses
) -> None:
    program = workload.start("clocks")
    started = time.monotonic_ns()
    dumped = ckpt("dump", "--cgroup", workload.cgroup, "--name", ckpt.new_job_name())
    program.await_progress()
    gaps_ms = gaps(program.log, since_ns=started)
    # The longest pause is the freeze, and the program's own 20 ms with the machine's noise around it.
    assert max(gaps_ms) - pauses.since(started / 1e9) * 1e3 <= dumped["frozen_ms"] + 60


def gaps(log: TickLog, *, since_ns: int) -> list[float]:
    """The milliseconds between one tick and the next, from then on."""
    at = [tick["monotonic_ns"] for tick in log.ticks() if tick["monotonic_ns"] >= since_ns]
    return [(later - earlier) / 1e6 for earlier, later in itertools.pairwise(at)]
