"""What the four time policies make of the time that passed."""

from __future__ import annotations

from dataclasses import replace

import pytest
from fakes.values import CLOCKS

from ckpt.model.clocks import (
    ClockTarget,
    TimeOffsets,
    TimePolicy,
    realtime_went_back,
    restore_span,
    resume_clocks,
)
from ckpt.units import SECOND, ByteCount, Nanoseconds

PACE = ByteCount(1 << 30)
SPENT = 7 * SECOND
OFFSETS = TimeOffsets(monotonic_ns=Nanoseconds(-3 * SECOND), boottime_ns=Nanoseconds(9 * SECOND))
LATER = replace(
    CLOCKS,
    realtime_ns=Nanoseconds(CLOCKS.realtime_ns + SPENT),
    monotonic_ns=Nanoseconds(CLOCKS.monotonic_ns + SPENT),
    boottime_ns=Nanoseconds(CLOCKS.boottime_ns + SPENT),
)


@pytest.mark.parametrize(
    ("policy", "monotonic_on_ns", "boottime_on_ns"),
    [(TimePolicy.SUSPEND, 0, SPENT), (TimePolicy.CONTINUE, 0, 0), (TimePolicy.ELAPSED, SPENT, SPENT)],
)
def test_the_clocks_go_on_from_what_the_workload_read_by_what_the_policy_says(
    policy: TimePolicy, monotonic_on_ns: int, boottime_on_ns: int
) -> None:
    found = resume_clocks(policy, CLOCKS, OFFSETS, LATER)
    assert found.clocks == ClockTarget(
        monotonic_ns=Nanoseconds(CLOCKS.monotonic_ns + OFFSETS.monotonic_ns + monotonic_on_ns),
        boottime_ns=Nanoseconds(CLOCKS.boottime_ns + OFFSETS.boottime_ns + boottime_on_ns),
    )
    assert (found.advance.realtime_ns, found.advance.monotonic_ns, found.advance.boottime_ns) == (
        SPENT,
        monotonic_on_ns,
        boottime_on_ns,
    )


def test_the_hosts_clocks_need_no_namespace_and_timers_see_the_difference() -> None:
    found = resume_clocks(TimePolicy.HOST, CLOCKS, OFFSETS, LATER)
    assert found.clocks is None
    assert found.advance.monotonic_ns == SPENT - OFFSETS.monotonic_ns
    assert found.advance.boottime_ns == 0  # the workload's was ahead: no timer is put off


@pytest.mark.parametrize("policy", TimePolicy)
def test_a_wall_clock_that_was_set_back_lets_no_clock_go_back(policy: TimePolicy) -> None:
    back = replace(LATER, realtime_ns=Nanoseconds(CLOCKS.realtime_ns - 1000 * SECOND))
    found = resume_clocks(policy, CLOCKS, TimeOffsets(), back)
    assert min(found.advance.monotonic_ns, found.advance.boottime_ns) >= 0
    # What is due at a time of day has so much longer to wait.
    assert found.advance.realtime_ns == -1000 * SECOND
    if found.clocks is not None:
        assert found.clocks.monotonic_ns >= CLOCKS.monotonic_ns
        assert found.clocks.boottime_ns >= CLOCKS.boottime_ns


def test_the_target_is_for_an_instant_that_may_be_still_to_come() -> None:
    found = resume_clocks(TimePolicy.ELAPSED, CLOCKS, TimeOffsets(), CLOCKS.later(Nanoseconds(SPENT)))
    assert found == resume_clocks(TimePolicy.ELAPSED, CLOCKS, TimeOffsets(), LATER)
    assert found.at_ns == LATER.boottime_ns


def test_a_wall_clock_that_went_back_is_told_by_how_much() -> None:
    saved = CLOCKS.realtime_ns
    assert realtime_went_back(CLOCKS, Nanoseconds(saved - 5)) == 5
    assert realtime_went_back(CLOCKS, Nanoseconds(saved + 5)) == 0


def test_more_to_restore_is_given_more_time() -> None:
    small = restore_span(ByteCount(1 << 20), 1, PACE)
    assert 0 < small < SECOND
    assert restore_span(ByteCount(1 << 30), 1, PACE) > small
    assert restore_span(ByteCount(1 << 20), 30, PACE) > small
