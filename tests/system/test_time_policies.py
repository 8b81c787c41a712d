"""The time policies of restore, as a program sees them that prints its clocks and what its timers have left.

The table of CLI.md, and of `ckpt restore --help`: what CLOCK_MONOTONIC and CLOCK_BOOTTIME make of the time
spent in the checkpoint. CLOCK_REALTIME is always the host's.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import pytest
from harness.command import Ckpt
from harness.processes import time_offsets
from harness.subjects import Clocks, Program, Workload
from harness.waiting import await_condition

pytestmark = pytest.mark.system

Tick = dict[str, Any]

SECOND = 1_000_000_000
#: How long the programs are in the checkpoint: longer than all that is allowed for noise below.
AWAY_S = 1.5
#: From the freeze's reading of the clocks to the program's first tick, minus the time that it is told to have
#: been away: the work of the restore that comes after the clocks are set, on a busy machine.
NOISE_NS = int(0.8 * SECOND)

MONOTONIC_TIMERS = ("timerfd_monotonic", "timerfd_moment", "posix_monotonic", "itimer")
BOOTTIME_TIMERS = ("timerfd_boottime", "posix_boottime")


class LongTimers(Clocks):
    """Nothing fires before the test is over."""


class ShortTimers(Clocks):
    """Everything fires a while after the restore, by the clock that went on from the freeze."""

    timers_s = 2.5
    sleep_s = 2.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Passage:
    """A program before its checkpoint and after it."""

    program: Program
    before: Tick
    after: Tick

    def passed_ns(self, clock: str) -> int:
        """What the program saw pass on one of its clocks."""
        return int(self.after[clock] - self.before[clock])

    @property
    def away_ns(self) -> int:
        """What really passed; all clocks of the host agree on it unless the machine was suspended."""
        return self.passed_ns("realtime_ns")


def pass_through(workload: Workload, ckpt: Ckpt, kind: type[Program], *policy: str) -> Passage:
    """Dump and stop a program, stay away for a while, restore it by the policy."""
    program = workload.start(kind)
    dumped = ckpt("dump", "--cgroup", workload.cgroup, "--name", ckpt.new_job_name(), "--stop")
    return stay_away(program, ckpt, dumped["id"], *policy)


def stay_away(program: Program, ckpt: Ckpt, checkpoint: str, *policy: str) -> Passage:
    """Let a while pass, then restore the program by the policy."""
    before, count = program.log.last(), program.log.count()
    # No condition to wait for: that time passes is what these tests are about.
    time.sleep(AWAY_S)
    options = ("--time", *policy) if policy else ()
    restored = ckpt("restore", checkpoint, *options)
    assert restored["pid"] == program.pid
    program.log.await_more(3)
    return Passage(program=program, before=before, after=program.log.ticks()[count])


def went_on_from_the_freeze(passage: Passage, clock: str) -> bool:
    return 0 <= passage.passed_ns(clock) < NOISE_NS


def counted_the_time_away(passage: Passage, clock: str) -> bool:
    return abs(passage.passed_ns(clock) - passage.away_ns) < SECOND // 100


def deadlines_moved_ns(passage: Passage, timers: tuple[str, ...], clock: str) -> dict[str, int]:
    """By how much later each timer will fire, on its clock, than it was set to."""
    return {
        timer: (passage.after["left_ns"][timer] + passage.after[clock])
        - (passage.before["left_ns"][timer] + passage.before[clock])
        for timer in timers
    }


def stayed(moved: dict[str, int]) -> bool:
    """Whether no timer lost or won time: each stands still only from the clocks' start until it is set again."""
    return all(-SECOND // 100 < by < NOISE_NS for by in moved.values())


def test_suspend_lets_monotonic_go_on_from_the_freeze_and_boottime_count_the_time_away(
    workload: Workload, ckpt: Ckpt
) -> None:
    passage = pass_through(workload, ckpt, LongTimers, "suspend")
    assert went_on_from_the_freeze(passage, "monotonic_ns")
    assert passage.passed_ns("boottime_ns") - passage.passed_ns("monotonic_ns") >= AWAY_S * SECOND
    # The wall clock's time in the checkpoint ends when the clocks are set, a little before the first tick.
    assert 0 <= passage.away_ns - passage.passed_ns("boottime_ns") < NOISE_NS
    moved = deadlines_moved_ns(passage, MONOTONIC_TIMERS, "monotonic_ns")
    assert stayed(moved), moved


def test_continue_lets_both_clocks_go_on_from_the_freeze(workload: Workload, ckpt: Ckpt) -> None:
    passage = pass_through(workload, ckpt, LongTimers, "continue")
    assert went_on_from_the_freeze(passage, "monotonic_ns")
    assert went_on_from_the_freeze(passage, "boottime_ns")
    assert abs(passage.passed_ns("boottime_ns") - passage.passed_ns("monotonic_ns")) < SECOND // 1000


def test_elapsed_lets_both_clocks_count_the_time_away(workload: Workload, ckpt: Ckpt) -> None:
    passage = pass_through(workload, ckpt, LongTimers, "elapsed")
    for clock in ("monotonic_ns", "boottime_ns"):
        assert passage.passed_ns(clock) >= AWAY_S * SECOND
        assert abs(passage.away_ns - passage.passed_ns(clock)) < NOISE_NS


def test_host_gives_the_program_the_clocks_of_the_host(workload: Workload, ckpt: Ckpt) -> None:
    passage = pass_through(workload, ckpt, LongTimers, "host")
    assert time_offsets(passage.program.pid) == {"monotonic": 0, "boottime": 0}
    # The program was on the host's clocks before as well: it sees the whole of the time away.
    assert counted_the_time_away(passage, "monotonic_ns")
    assert counted_the_time_away(passage, "boottime_ns")
    earlier = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    tick = passage.program.log.await_more(2)
    later = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    assert earlier < tick["monotonic_ns"] < later


@pytest.mark.parametrize("policy", ["suspend", "continue", "elapsed"])
def test_every_timer_is_due_at_the_moment_of_its_clock_that_it_was_set_to(
    policy: str, workload: Workload, ckpt: Ckpt
) -> None:
    passage = pass_through(workload, ckpt, LongTimers, policy)
    moved = deadlines_moved_ns(passage, MONOTONIC_TIMERS, "monotonic_ns")
    moved |= deadlines_moved_ns(passage, BOOTTIME_TIMERS, "boottime_ns")
    assert stayed(moved), moved


@pytest.mark.parametrize("policy", ["suspend", "continue", "elapsed", "host"])
def test_every_timer_fires_once_and_every_sleeper_wakes_not_before_its_time(
    policy: str, workload: Workload, ckpt: Ckpt
) -> None:
    passage = pass_through(workload, ckpt, ShortTimers, policy)
    log = passage.program.log

    def all_done() -> bool:
        tick = log.last()
        return all(tick["fired_ns"].values()) and all(tick["woke_ns"].values())

    await_condition(all_done, lambda: f"all timers and sleepers; {log.last()}")
    tick = log.last()
    start = tick["start_ns"]
    due_ns = int(ShortTimers.timers_s * SECOND)
    for timer in (*MONOTONIC_TIMERS, *BOOTTIME_TIMERS):
        clock = "boottime" if timer in BOOTTIME_TIMERS else "monotonic"
        assert tick["fired_ns"][timer] >= start[clock] + due_ns, timer
    for sleeper in ("relative", "absolute"):
        assert tick["woke_ns"][sleeper] >= start["monotonic"] + due_ns, sleeper
    if policy in ("suspend", "continue"):
        # By the clock that stood still: as if nothing had been, but for the work of the restore.
        for timer in MONOTONIC_TIMERS:
            assert tick["fired_ns"][timer] < start["monotonic"] + due_ns + NOISE_NS, timer
        assert tick["woke_ns"]["absolute"] < start["monotonic"] + due_ns + NOISE_NS
        assert tick["woke_ns"]["relative"] < start["monotonic"] + due_ns + NOISE_NS
    log.check()


def test_two_stays_without_a_policy_are_two_suspends(workload: Workload, ckpt: Ckpt) -> None:
    first = pass_through(workload, ckpt, LongTimers)
    program = first.program
    dumped = ckpt("dump", "--pid", program.pid, "--name", ckpt.new_job_name(), "--stop")
    second = stay_away(program, ckpt, dumped["id"])
    for passage in (first, second):
        assert went_on_from_the_freeze(passage, "monotonic_ns")
        assert passage.passed_ns("boottime_ns") >= AWAY_S * SECOND
    program.log.check()
