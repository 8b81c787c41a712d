"""What must be as before when the tests are over: processes, cgroups, mounts, loop devices, network locks."""

from __future__ import annotations

import os
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from harness.processes import cgroup_of, describe, marked
from harness.side_by_side import WORKER
from harness.traces import SESSION


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What there is of ckpt and CRIU on this machine."""

    cgroups: frozenset[str]
    mounts: frozenset[str]
    loops: frozenset[str]
    tables: frozenset[str]
    processes: frozenset[str]

    @classmethod
    def now(cls) -> Machine:
        """Look."""
        return cls(
            cgroups=_cgroups(), mounts=_mounts(), loops=_loops(), tables=_tables(), processes=_processes()
        )

    def since(self, before: Machine) -> list[str]:
        """What is here that was not there before, each in a few words."""
        return [
            *(f"process {name}" for name in sorted(self.processes - before.processes)),
            *(f"cgroup {name}" for name in sorted(self.cgroups - before.cgroups)),
            *(f"mount {name}" for name in sorted(self.mounts - before.mounts)),
            *(f"loop device of {name}" for name in sorted(self.loops - before.loops)),
            *(f"nft table {name}" for name in sorted(self.tables - before.tables)),
        ]


def _cgroups() -> frozenset[str]:
    """Every cgroup of any version named after ckpt; the empty folder of all jobs is part of the house."""
    found = set()
    for folder, names, _ in os.walk("/sys/fs/cgroup"):
        found |= {os.path.join(folder, name) for name in names if name.startswith("ckpt")}
        found |= {os.path.join(folder, name) for name in names if os.path.basename(folder).startswith("ckpt")}
    return frozenset(name for name in found if not _is_of_others(name))


def _is_of_others(cgroup: str) -> bool:
    """Whether somebody else who uses ckpt on this machine made it: other tests, or what its processes are."""
    if "/ckpt-test-" in cgroup:
        return SESSION not in cgroup
    pids = []
    for folder, _, _ in os.walk(cgroup):
        try:
            pids += map(int, Path(folder, "cgroup.procs").read_text().split())
        except OSError:
            return True
    ours = set(marked(SESSION))
    return any(pid not in ours for pid in pids) or (os.path.basename(cgroup) == "ckpt" and not pids)


def _mounts() -> frozenset[str]:
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    ours = (mount for mount in mounts if "ckpt" in mount or "pytest" in mount)
    return frozenset(mount for mount in ours if not _is_of_other_worker(mount))


def _is_of_other_worker(path: str) -> bool:
    """Whether it lies in the folder that pytest gave to another worker of this run."""
    return "/popen-gw" in path and f"/popen-{WORKER}/" not in path


def _loops() -> frozenset[str]:
    """The files that are attached to loop devices with numbers of ckpt's own."""
    attached = set()
    for each in Path("/sys/block").glob("loop[0-9][0-9][0-9][0-9][0-9]*/loop/backing_file"):
        with suppress(OSError):
            attached.add(each.read_text().strip())
    return frozenset(file for file in attached if not _is_of_other_worker(file))


def _tables() -> frozenset[str]:
    shown = subprocess.run(["nft", "list", "tables"], check=False, capture_output=True, text=True)
    return frozenset(line for line in shown.stdout.splitlines() if "CRIU-" in line)


def _processes() -> frozenset[str]:
    return frozenset(f"{describe([pid])} in {cgroup_of(pid)}" for pid in marked(SESSION))
