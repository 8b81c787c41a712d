"""Timerfds of another process, set from outside."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from ckpt.host import timerfds
from ckpt.host.criu.timerfd_images import ArmedTimerfd
from ckpt.units import MILLISECOND, SECOND, Nanoseconds, Pid

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(os.geteuid() != 0, reason="a descriptor of another process needs root"),
]

PERIOD_NS = 3600 * SECOND

# A timer that has expired once, is not read, and would fire again after an hour.
HOLDER = """
import ctypes, select, struct, sys
libc = ctypes.CDLL(None)
fd = libc.timerfd_create(1, 0)
libc.timerfd_settime(fd, 0, struct.pack("4q", 3600, 0, 0, 1), None)
select.select([fd], [], [])
print(fd, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder() -> Iterator[tuple[Pid, int]]:
    """A process, and its descriptor for the timer."""
    with subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        yield Pid(process.pid), int(process.stdout.readline())
        process.kill()


def shown(holder: tuple[Pid, int]) -> dict[str, str]:
    """The timer as /proc shows it."""
    with open(f"/proc/{holder[0]}/fdinfo/{holder[1]}") as stream:
        return {name: value.strip() for name, _, value in (line.partition(":") for line in stream)}


def timer(holder: tuple[Pid, int], left_ns: int, ticks: int = 0) -> ArmedTimerfd:
    return ArmedTimerfd(
        holder=holder[0],
        descriptor=holder[1],
        clock=time.CLOCK_MONOTONIC,
        flags=0,
        left_ns=Nanoseconds(left_ns),
        interval_ns=Nanoseconds(PERIOD_NS),
        ticks=ticks,
    )


def test_a_periodic_timer_that_was_not_read_is_set_for_its_next_beat(holder: tuple[Pid, int]) -> None:
    assert shown(holder)["it_value"] == "(0, 0)"
    timerfds.settle([holder, (holder[0], 1000)])
    assert shown(holder)["it_value"].startswith("(3599, ")
    assert shown(holder)["ticks"] == "1"


def test_a_timer_is_set_for_the_instant_at_which_its_holder_goes_on(holder: tuple[Pid, int]) -> None:
    at = Nanoseconds(time.clock_gettime_ns(time.CLOCK_BOOTTIME) - 2 * SECOND)
    with timerfds.taken([timer(holder, 100 * SECOND, ticks=7)], lambda pid: pid) as taken:
        timerfds.rearm(taken, at)
        ((_, fd),) = taken
        assert select.select([fd], [], [], 0)[0], "the ticks that were not read"
    assert shown(holder)["it_value"].startswith("(97, ")
    assert shown(holder)["ticks"] == "7"
    with timerfds.taken([timer(holder, 2 * SECOND + 50 * MILLISECOND)], lambda pid: pid) as taken:
        timerfds.rearm(taken, at)
        ((_, fd),) = taken
        assert select.select([fd], [], [], 10)[0]
