"""A workload that goes on after its dump waits on as if there had been none."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from harness.subjects import Program, Workload
from harness.waiting import await_condition

from ckpt.host import live_waits, ptrace_requests, waits
from ckpt.host.criu import engine
from ckpt.host.criu.request import DumpRequest
from ckpt.host.criu.worker import Worker
from ckpt.host.freezer_control import control_of
from ckpt.units import SECOND, Nanoseconds, Pid

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(not ptrace_requests.supported(), reason="ckpt traces on x86-64 only"),
]

SPAN_S = 4.0
LATE_NS = 100_000_000
WAITS = 27


class Waits(Program):
    """images/subjects/waits.c."""

    def command(self) -> list[str]:
        return [str(self._compiled / "waits"), str(self.log.path), str(SPAN_S), "400"]

    def await_ready(self) -> None:
        await_condition(self.log.count, "the program to have begun all its waits")


def test_no_wait_is_interrupted_or_late_because_of_a_dump(
    workload: Workload, criu: Path, tmp_path: Path
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    with Worker.start(criu) as worker:
        program = workload.new(Waits)
        # Not a child of this process: whose other threads would take note of its stops.
        beside = 'setsid "$@" & echo $! >pid.new && mv pid.new pid && exec sleep 1000'
        workload.spawn(["/bin/sh", "-c", beside, "sh", *program.command()], program.folder)
        await_condition((program.folder / "pid").exists, "the program's pid")
        pid = Pid(int((program.folder / "pid").read_text()))
        program.await_ready()
        control = control_of(str(workload.cgroup))
        assert control is not None
        # No condition to wait for: that a part of each wait has passed is what this is about.
        time.sleep(0.2)
        sleeps = waits.look([pid])
        control.freeze(Nanoseconds(10 * SECOND))
        frozen_at = Nanoseconds(time.monotonic_ns())
        pending = waits.confirm(sleeps, frozen_at)
        engine.dump(
            worker,
            DumpRequest(pid=pid, images=images, leave_running=True, freeze_cgroup=workload.cgroup.path),
        )
    assert not any("wait" in line for line in program.log.ticks()), "the dump came too late"
    assert live_waits.go_on([pid], pending, frozen_at, control.thaw) > 0
    assert not control.held()

    def said() -> list[dict[str, int]]:
        return [line for line in program.log.ticks() if "wait" in line]

    await_condition(lambda: len(said()) >= WAITS, lambda: f"all waits to be over: {said()}")
    waited = {line["wait"]: line for line in said() if "due_ns" in line and line["wait"] != "futex_span"}
    assert {name for name, line in waited.items() if line["errno"] == 4} == set()
    late = {name: line["done_ns"] - line["due_ns"] for name, line in waited.items()}
    assert all(0 <= by < LATE_NS for by in late.values()), late
