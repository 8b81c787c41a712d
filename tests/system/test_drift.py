"""A job that travels between hosts with other clocks: to it, they only ever go on."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from harness.command import Ckpt
from harness.lab import Host
from harness.ticks import TickLog
from harness.traces import Traces

pytestmark = pytest.mark.system

ROUNDS = 10
MS = 1_000_000


def test_ten_rounds_over_two_hosts_with_other_clocks_let_no_clock_go_back_or_drift(
    traces: Traces, compiled: Path, ckpt: Ckpt
) -> None:
    hosts = (
        Host(traces, "one", shared=(compiled,), monotonic_s=100_000, boottime_s=200_000),
        Host(traces, "two", shared=(compiled,), monotonic_s=3_000_000, boottime_s=1_000),
    )
    hosts[0].trust(hosts[1], ckpt)
    hosts[1].trust(hosts[0], ckpt)
    log = TickLog(traces.folder / "log")
    name = ckpt.new_job_name()
    clocks = (str(compiled / "clocks"), log.path, 3600, 3600)
    hosts[0].ckpt(ckpt, "run", "--detach", "--name", name, "--", *clocks)
    log.await_more(3)
    for number in range(ROUNDS):
        source, target = hosts[number % 2], hosts[(number + 1) % 2]
        dumped = source.ckpt(ckpt, "dump", name, "--stop")
        target.ckpt(ckpt, "restore", dumped["id"])
        log.await_more(3)
    log.check()
    ticks = log.ticks()
    for before, after in itertools.pairwise(ticks):
        assert after["monotonic_ns"] > before["monotonic_ns"]
        assert after["boottime_ns"] > before["boottime_ns"]
    # The boot clock counts all that passed, also in the checkpoints: it never leaves the wall clock.
    apart = [tick["realtime_ns"] - tick["boottime_ns"] for tick in ticks]
    assert max(apart) - min(apart) < ROUNDS * MS
    # The other one counts what the job saw: of a round no more than the work around it.
    assert ticks[-1]["monotonic_ns"] < ticks[-1]["boottime_ns"] - 100_000 * 1000 * MS + 60_000 * MS
