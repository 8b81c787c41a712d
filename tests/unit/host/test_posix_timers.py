"""Which POSIX timers were set to a time of the wall clock, by the kernel's list of all timers."""

from __future__ import annotations

import time

import pytest

from ckpt.host import timer_list
from ckpt.host.posix_timers import PosixEnds, ends_in, wall_clock_ends
from ckpt.units import MILLISECOND, SECOND

MS = MILLISECOND

LIST = b"""Timer List Version: v0.10
HRTIMER_MAX_CLOCK_BASES: 8
now at 16335862595074 nsecs

cpu: 0
 clock 0:
  .base:       000000003d32b83a
  .index:      0
  .resolution: 1 nsecs
  .offset:     0 nsecs
active timers:
 #0: <000000009fbaf1db>, hrtimer_wakeup, S:01
 # expires at 16335863272676-16335863322676 nsecs [in 677602 to 727602 nsecs]
 #1: <00000000e0e8f265>, posix_timer_fn, S:01
 # expires at 16336000000000-16336000000000 nsecs [in 379727125821 to 379727125821 nsecs]
 clock 5:
  .base:       0000000030005f36
  .index:      5
  .resolution: 1 nsecs
  .offset:     1795622456226574024 nsecs
active timers:
 #0: <00000000e0e8f266>, posix_timer_fn, S:01
 # expires at 1795638792000000000-1795638792000000000 nsecs [in 379727125821 to 379727125821 nsecs]
"""


def test_the_list_of_the_kernel_is_read_by_clocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timer_list, "_ours_ns", lambda: 0)
    at_ns = timer_list.taken_at(LIST)
    assert at_ns == 16335862595074
    assert ends_in(LIST, at_ns) == PosixEnds(
        monotonic=(16336000000000 - at_ns,), realtime=(1795638792000000000 - 1795622456226574024 - at_ns,)
    )


@pytest.mark.parametrize(
    ("ends", "found"),
    [
        (PosixEnds(realtime=(5 * SECOND,)), {0: 5 * SECOND}),
        (PosixEnds(monotonic=(5 * SECOND,)), {}),
        # What fits both is not known.
        (PosixEnds(monotonic=(5 * SECOND + 3 * MS,), realtime=(5 * SECOND,)), {}),
        (PosixEnds(realtime=(6 * SECOND,)), {}),
        (PosixEnds(), {}),
    ],
)
def test_a_lone_timer_is_of_the_wall_clock_if_only_that_fits(ends: PosixEnds, found: dict[int, int]) -> None:
    assert wall_clock_ends([(0, 5 * SECOND + 8 * MS)], ends) == found


def test_the_other_timers_of_a_task_tell_what_one_cannot() -> None:
    late_ns = 9 * MS
    timers = [
        (clock, left_ns + late_ns) for clock, left_ns in [(1, 3 * SECOND), (0, 5 * SECOND), (7, SECOND)]
    ]
    ends = PosixEnds(
        monotonic=(3 * SECOND, 5 * SECOND + 3 * MS), realtime=(5 * SECOND,), boottime=(SECOND, SECOND + MS)
    )
    assert wall_clock_ends(timers, ends) == {1: 5 * SECOND}


def test_an_entry_of_the_list_belongs_to_one_timer() -> None:
    """As a program sets them that reads both clocks, and adds the same to each."""
    ends = PosixEnds(monotonic=(5 * SECOND,), realtime=(5 * SECOND + 200,))
    timers = [(1, 5 * SECOND + 8 * MS), (0, 5 * SECOND + 8 * MS - 900)]
    assert wall_clock_ends(timers, ends) == {1: 5 * SECOND + 200}


def test_many_timers_of_one_time_take_no_longer_than_that() -> None:
    timers = [(0, 5 * SECOND + place) for place in range(20_000)]
    ends = PosixEnds(realtime=tuple(left_ns for _, left_ns in timers))
    began = time.process_time()
    wall_clock_ends(timers, ends)
    assert time.process_time() - began < 5
