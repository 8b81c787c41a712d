"""What a guard makes of a version-2 cgroup's events, with plain files for the kernel's."""

from __future__ import annotations

import os
import select
from pathlib import Path

from ckpt.host.guard.arms import Arm
from ckpt.host.journal import MemoryControl
from ckpt.model.guard_steps import AtOom, AtShare, KillVictim, Reclaim
from ckpt.model.guarding import Event, Policy, Watched

MIB = 1 << 20


class Noting:
    """An operation that notes nothing."""

    def note(self, step: MemoryControl) -> None:
        pass

    def forget(self, step: MemoryControl) -> None:
        pass


def write(cgroup: Path, *, used: int, droppable: int, highs: int) -> None:
    (cgroup / "memory.current").write_text(f"{used * MIB}\n")
    (cgroup / "memory.stat").write_text(f"inactive_file {droppable * MIB}\n")
    (cgroup / "memory.max").write_text(f"{100 * MIB}\n")
    (cgroup / "memory.high").write_text("max\n")
    (cgroup / "memory.events").write_text(f"low 0\nhigh {highs}\nmax 0\noom 0\noom_kill 0\n")


def test_a_job_that_is_full_of_files_that_can_be_dropped_is_not_near_the_kill(tmp_path: Path) -> None:
    policy = Policy(steps=(Reclaim(at=AtShare(share=0.9)), KillVictim(at=AtOom())))
    write(tmp_path, used=95, droppable=60, highs=0)
    arm = Arm(Watched(cgroup=str(tmp_path)), policy, Noting(), {})  # type: ignore[arg-type]
    assert arm.refresh()
    (events,) = (fd for fd in arm.descriptors if _path_of(fd) == str(tmp_path / "memory.events"))
    write(tmp_path, used=95, droppable=60, highs=1)
    assert arm.hear(events, select.POLLPRI) is Event.THRESHOLD
    write(tmp_path, used=95, droppable=1, highs=2)
    assert arm.hear(events, select.POLLPRI) is Event.OOM
    arm.close()


def _path_of(fd: int) -> str:
    return os.readlink(f"/proc/self/fd/{fd}")
