"""Every subject survives bare CRIU: what fails here is CRIU's or the subject's, and not ours."""

from __future__ import annotations

from pathlib import Path

import pytest
from harness.bare_criu import BareCriu
from harness.subjects import PROGRAMS, Workload

pytestmark = pytest.mark.system

# A periodic timerfd that expires while it is dumped never fires again after CRIU's restore (criu#3162): that
# ckpt mends it is seen in test_workloads.
SURVIVORS = [kind for kind in PROGRAMS if kind != "events"]


@pytest.mark.parametrize("kind", SURVIVORS)
def test_a_subject_goes_on_after_bare_criu_dumped_and_restored_it(
    kind: str, workload: Workload, bare: BareCriu, tmp_path: Path
) -> None:
    program = workload.start(kind)
    assert len(workload.pids()) >= program.processes_min
    program.remember()
    bare.dump(program.pid, tmp_path / "images", leave_running=program.can_go_back)
    if program.can_go_back:
        workload.check()
        workload.kill()
        program.was_taken_back()
    workload.await_empty()
    assert bare.restore(tmp_path / "images") == program.pid
    workload.check()
