"""Time namespaces read what was asked of them, seen by a process that lives in one."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from ckpt.host.timens import TimeNamespace, offsets_of
from ckpt.model.clocks import ClockTarget
from ckpt.units import SECOND, Nanoseconds

pytestmark = pytest.mark.system

READ = (
    "import ctypes, time, sys; ctypes.CDLL(None).setns(int(sys.argv[1]), 0); "
    "print(time.clock_gettime_ns(time.CLOCK_MONOTONIC), time.clock_gettime_ns(time.CLOCK_BOOTTIME))"
)


@pytest.mark.skipif(os.geteuid() != 0, reason="time namespaces need root")
@pytest.mark.parametrize("start_s", [1, 10**7])
def test_the_clocks_start_where_they_were_told_to_whatever_the_hosts_read(start_s: int) -> None:
    wanted = ClockTarget(
        monotonic_ns=Nanoseconds(start_s * SECOND), boottime_ns=Nanoseconds(3 * start_s * SECOND + 500)
    )
    before = time.monotonic_ns()
    at = Nanoseconds(time.clock_gettime_ns(time.CLOCK_BOOTTIME))
    with TimeNamespace.with_clocks(wanted, at) as namespace:
        output = subprocess.run(
            [sys.executable, "-I", "-S", "-c", READ, str(namespace.fd)],
            pass_fds=(namespace.fd,),
            capture_output=True,
            check=True,
            text=True,
        ).stdout
    passed = time.monotonic_ns() - before
    monotonic, boottime = map(int, output.split())
    assert 0 <= monotonic - wanted.monotonic_ns <= passed
    # One instant for both clocks: they go on in step.
    assert abs((boottime - wanted.boottime_ns) - (monotonic - wanted.monotonic_ns)) < 1_000_000


def test_the_offsets_of_a_process_that_has_ended_are_zero() -> None:
    ended = subprocess.Popen([sys.executable, "-c", "pass"])
    ended.wait()
    assert offsets_of(str(ended.pid)).monotonic_ns == 0
