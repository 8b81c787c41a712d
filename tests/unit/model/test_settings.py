"""Settings of tasks: CPUs as ranges and one by one."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from ckpt.model.settings import CpuRange, ThreadSettings, cpu_ranges
from ckpt.units import Pid


@given(st.sets(st.integers(0, 300)))
def test_ranges_name_each_cpu_once_and_no_two_of_them_touch(numbers: set[int]) -> None:
    ranges = cpu_ranges(numbers)
    thread = ThreadSettings(thread=Pid(1), cpus=ranges, io_priority=None, timer_slack_ns=None)
    assert thread.cpu_numbers == numbers
    assert all(one.last + 1 < other.first for one, other in pairwise(ranges))


def test_cpus_that_follow_each_other_are_one_range() -> None:
    assert cpu_ranges({0, 1, 2, 8}) == (CpuRange(first=0, last=2), CpuRange(first=8, last=8))
