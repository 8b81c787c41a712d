"""One process as /proc shows it: what the manifest records of it, and what decides whether it can be dumped.

Rules: a process that ends while it is read is not there; that is no error, and its zombie is still read. What
one reading needs, and only that, is read: this runs under the freeze.
Source: proc_pid_stat(5), proc_pid_status(5), proc_tid_children(5), namespaces(7), sched(7).
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from ckpt.model.workload import Process
from ckpt.units import Pid

NAMESPACES: Final = ("cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts")

SCHED_DEADLINE: Final = 6
_POLICY_BITS: Final = 0xFF
"""sched_getscheduler(2) adds SCHED_RESET_ON_FORK above them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessFacts:
    """A process at one moment.

    `namespaces` are inode numbers by kind, none for a zombie; `deadline` says whether one of its threads is
    scheduled by SCHED_DEADLINE; `children` are those of all its threads, zombies included.
    """

    process: Process
    tracer: Pid
    deadline: bool
    children: tuple[Pid, ...]
    namespaces: dict[str, int]
    executable: str

    @property
    def pid(self) -> Pid:
        """Its pid on this host."""
        return self.process.pid

    @property
    def ended(self) -> bool:
        """Whether only its zombie is left."""
        return not self.namespaces

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
    try:
        return _read_process(pid, controllers, cgroup)
    except PermissionError:
        # So the kernel refuses a link of a process that ended after it was found (fs/proc/namespaces.c, fs/proc/base.c).
        return _read_process(pid, controllers, cgroup)


def _read_process(pid: Pid, controllers: str, cgroup: str) -> ProcessFacts | None:
    place = f"/proc/{pid}"
    try:
        stat = _read(f"{place}/stat")
        status = dict(line.split(":\t", 1) for line in _read(f"{place}/status").splitlines() if ":\t" in line)
        threads = sorted(
            (Pid(int(name)) for name in os.listdir(f"{place}/task")), key=lambda tid: (tid != pid, tid)
        )
        name = stat[stat.index("(") + 1 : stat.rindex(")")]
        fields = stat[stat.rindex(")") + 2 :].split()
        where = _read(f"{place}/cgroup")
        command_line = _read(f"{place}/cmdline").split("\0")[:-1]
        namespaces, executable = {}, ""
        if fields[0] not in "ZX":
            namespaces = {
                kind: int(os.readlink(f"{place}/ns/{kind}")[len(kind) + 2 : -1]) for kind in NAMESPACES
            }
            executable = os.readlink(f"{place}/exe")
    except (FileNotFoundError, ProcessLookupError):
        return None
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
        deadline=any(_policy(thread) == SCHED_DEADLINE for thread in threads),
        children=_children(pid, threads),
        namespaces=namespaces,
        executable=executable,
    )


def _policy(thread: Pid) -> int:
    with suppress(ProcessLookupError):
        return os.sched_getscheduler(thread) & _POLICY_BITS
    return 0


def _children(pid: Pid, threads: Iterable[Pid]) -> tuple[Pid, ...]:
    """Exact while all threads stand still; the kernel promises nothing else."""
    found: list[Pid] = []
    for thread in threads:
        with suppress(FileNotFoundError, ProcessLookupError):
            found += (Pid(int(word)) for word in _read(f"/proc/{pid}/task/{thread}/children").split())
    return tuple(found)


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
