"""One process as /proc shows it: what the manifest records of it, and what decides whether it can be dumped.

Rules: a process that ends while it is read is not there; that is no error. What one reading needs, and only
that, is read: this runs under the freeze.
Source: proc_pid_stat(5), proc_pid_status(5), namespaces(7).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Final

from ckpt.model.workload import Process
from ckpt.units import Pid

NAMESPACES: Final = ("cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts")

_POLICY_FIELD: Final = 38
"""Field 41 of /proc/PID/stat, counted from the state (field 3) at 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessFacts:
    """A process at one moment. `namespaces` are inode numbers by kind; `policy` is its scheduling policy."""

    process: Process
    tracer: Pid
    policy: int
    namespaces: dict[str, int]
    executable: str

    @property
    def pid(self) -> Pid:
        """Its pid on this host."""
        return self.process.pid

    @property
    def label(self) -> str:
        """How messages call it."""
        return f"process {self.process.pid} ({self.process.name})"


def read_process(pid: Pid, controllers: str, cgroup: str) -> ProcessFacts | None:
    """The process with this pid; None if it has ended.

    Args:
        pid: As this host sees it.
        controllers: The hierarchy of the workload's cgroup, as /proc/PID/cgroup names it ("" for version 2).
        cgroup: The workload's cgroup, as /proc/PID/cgroup shows it.
    """
    place = f"/proc/{pid}"
    try:
        stat = _read(f"{place}/stat")
        status = dict(line.split(":\t", 1) for line in _read(f"{place}/status").splitlines() if ":\t" in line)
        threads = sorted(
            (Pid(int(name)) for name in os.listdir(f"{place}/task")), key=lambda tid: (tid != pid, tid)
        )
        command_line = _read(f"{place}/cmdline").split("\0")[:-1]
        namespaces = {kind: int(os.readlink(f"{place}/ns/{kind}")[len(kind) + 2 : -1]) for kind in NAMESPACES}
        executable = os.readlink(f"{place}/exe")
        where = _read(f"{place}/cgroup")
    except (FileNotFoundError, ProcessLookupError):
        return None
    name = stat[stat.index("(") + 1 : stat.rindex(")")]
    fields = stat[stat.rindex(")") + 2 :].split()
    return ProcessFacts(
        process=Process(
            pid=pid,
            pid_inside=Pid(int(status["NSpid"].split()[-1])),
            parent=Pid(int(fields[1])),
            name=name,
            state=fields[0],
            threads=tuple(threads),
            command_line=tuple(command_line),
            uid=int(status["Uid"].split()[1]),
            gid=int(status["Gid"].split()[1]),
            capabilities=int(status["CapEff"], 16),
            seccomp=int(status.get("Seccomp", "0")),
            cgroup=_below(where, controllers, cgroup),
        ),
        tracer=Pid(int(status["TracerPid"])),
        policy=int(fields[_POLICY_FIELD]),
        namespaces=namespaces,
        executable=executable,
    )


def _below(lines: str, controllers: str, cgroup: str) -> str:
    """Where below the workload's cgroup this process is; "" for that one itself."""
    for line in lines.splitlines():
        _, hierarchy, path = line.split(":", 2)
        if hierarchy == controllers and path.startswith(cgroup + "/"):
            return path[len(cgroup) + 1 :]
    return ""


def _read(path: str) -> str:
    with open(path, "rb") as stream:
        return stream.read().decode(errors="replace")
