"""The clocks are one instant, and say where they are from."""

from __future__ import annotations

import time

from ckpt.host.clock import HostClock
from ckpt.host.hostfacts import read_host_facts
from ckpt.host.process_table import boot_id


def test_the_three_clocks_are_of_one_instant_between_two_readings() -> None:
    before = [time.clock_gettime_ns(each) for each in (time.CLOCK_MONOTONIC, time.CLOCK_BOOTTIME)]
    clocks = HostClock().read()
    after = [time.clock_gettime_ns(each) for each in (time.CLOCK_MONOTONIC, time.CLOCK_BOOTTIME)]
    assert before[0] <= clocks.monotonic_ns <= after[0]
    assert before[1] <= clocks.boottime_ns <= after[1]
    assert abs(time.time_ns() - clocks.realtime_ns) < 10**9


def test_the_differences_between_the_clocks_are_steady() -> None:
    clock = HostClock()
    gaps = [clock.read() for _ in range(20)]
    steps = [each.boottime_ns - each.monotonic_ns for each in gaps]
    # Each reading is of one instant to some microseconds, unless the machine stole the processor.
    assert sorted(steps)[10] - min(steps) < 10**6


def test_the_clocks_name_this_run_of_the_kernel() -> None:
    clocks = HostClock().read()
    assert clocks.boot_id == boot_id()
    assert "\n" not in clocks.time_zone + clocks.clocksource


def test_the_stopwatch_never_goes_back() -> None:
    clock = HostClock()
    readings = [clock.stopwatch() for _ in range(100)]
    assert readings == sorted(readings)


def test_the_host_facts_tell_what_a_restore_must_compare() -> None:
    facts = read_host_facts("4.2.1", "0.1.0")
    assert facts.kernel
    assert facts.architecture
    assert facts.hostname
    assert facts.cpu_features == tuple(sorted(facts.cpu_flags)) != ()
    assert (facts.criu_version, facts.ckpt_version) == ("4.2.1", "0.1.0")
