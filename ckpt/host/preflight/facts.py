"""What the rules look at: one reading of a workload, and what is read on demand, once.

Rule: a file of /proc is read at most once in one check, however many rules ask for it.
Source: proc_pid_status(5), proc_pid_fdinfo(5), capabilities(7).
"""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import cached_property
from typing import Any, TypeVar

from ckpt.host.inspection.holdings import Hold, Holdings
from ckpt.host.inspection.processes import ProcessFacts
from ckpt.host.inspection.snapshot import Snapshot
from ckpt.host.mounts import Mount, mounts_of
from ckpt.host.proc_text import read_text
from ckpt.model.checkpoint import DumpOptions
from ckpt.model.inodes import RoleKind
from ckpt.units import Pid

Made = TypeVar("Made")

NAMESPACES = ("cgroup", "pid", "user", "ipc", "uts", "mnt", "net", "time")


class Facts:
    """A workload at one moment, and this process, as far as its rights and limits matter.

    `cgroup` is the absolute path of the workload's cgroup, "" for a tree that is named by a pid. `staging` is the
    directory below which CRIU's images will be written, "" where none will.
    """

    def __init__(self, snapshot: Snapshot, options: DumpOptions, cgroup: str, *, staging: str = "") -> None:
        """Look at what `snapshot` has."""
        self.snapshot = snapshot
        self.options = options
        self.cgroup = cgroup
        self.staging = staging
        self._made: dict[object, Any] = {}

    @property
    def tasks(self) -> Iterable[ProcessFacts]:
        """The processes that have not ended."""
        return (task for task in self.snapshot.processes.values() if not task.ended)

    @property
    def pids(self) -> frozenset[Pid]:
        """All processes, zombies included."""
        return frozenset(self.snapshot.processes)

    def holdings(self, task: ProcessFacts) -> Holdings:
        """What a process holds."""
        return self.snapshot.holdings[task.pid]

    def descriptors(self, task: ProcessFacts) -> Iterable[Hold]:
        """The open descriptors of a process."""
        return (hold for hold in self.holdings(task).holds if hold.kind is RoleKind.FD)

    def once(self, make: Callable[[Facts], Made]) -> Made:
        """What `make` gives for these facts; it is called the first time only."""
        if make not in self._made:
            self._made[make] = make(self)
        made: Made = self._made[make]
        return made

    def status(self, task: ProcessFacts) -> dict[str, str]:
        """/proc/PID/status by its names; empty if the process has ended."""
        return self._table(f"/proc/{task.pid}/status")

    def fdinfo(self, hold: Hold) -> dict[str, str]:
        """/proc/PID/fdinfo/FD by its names, the last of lines that have the same; empty if it was closed."""
        return self._table(f"/proc/{hold.pid}/fdinfo/{fd_of(hold)}", self._known_fdinfo(hold))

    def mount_id(self, hold: Hold) -> int | None:
        """The mount that a descriptor was opened on, as mountinfo numbers it; None if it was closed, or has none."""
        known = self._known_fdinfo(hold)
        if known is None:
            number = self.fdinfo(hold).get("mnt_id", "")
        else:
            number = known.partition("mnt_id:")[2].partition("\n")[0].strip()
        return int(number) if number else None

    def fdinfo_lines(self, hold: Hold) -> tuple[str, ...]:
        """/proc/PID/fdinfo/FD, where names come several times; empty if it was closed."""
        known = self._known_fdinfo(hold)
        return (
            self.lines(f"/proc/{hold.pid}/fdinfo/{fd_of(hold)}")
            if known is None
            else tuple(known.splitlines())
        )

    def lines(self, path: str) -> tuple[str, ...]:
        """The lines of a file of /proc; empty if it is gone."""
        key = ("lines", path)
        if key not in self._made:
            self._made[key] = ()
            with suppress(OSError):
                self._made[key] = tuple(read_text(path).splitlines())
        made: tuple[str, ...] = self._made[key]
        return made

    def mounts(self, pid: Pid | str) -> tuple[Mount, ...]:
        """The mounts that a process ("self" for this one) sees; empty if it has ended."""
        key = ("mounts", pid)
        if key not in self._made:
            self._made[key] = ()
            with suppress(OSError):
                self._made[key] = tuple(mounts_of(pid))
        made: tuple[Mount, ...] = self._made[key]
        return made

    @cached_property
    def own_namespaces(self) -> dict[str, int]:
        """The namespaces of this process: inode numbers by kind."""
        return {kind: os.stat(f"/proc/self/ns/{kind}").st_ino for kind in NAMESPACES}

    @cached_property
    def own_capabilities(self) -> int:
        """The effective capabilities of this process, as bits."""
        return int(self._table("/proc/self/status").get("CapEff", "0"), 16)

    @cached_property
    def own_descriptors_max(self) -> int:
        """How many descriptors this process may allow itself, and so CRIU."""
        return resource.getrlimit(resource.RLIMIT_NOFILE)[1]

    def _known_fdinfo(self, hold: Hold) -> str | None:
        """What was read of it with the process; None if nothing was."""
        return (
            self.snapshot.holdings[hold.pid].fdinfo.get(fd_of(hold))
            if hold.pid in self.snapshot.holdings
            else None
        )

    def _table(self, path: str, known: str | None = None) -> dict[str, str]:
        if path not in self._made:
            self._made[path] = {}
            with suppress(OSError):
                text = read_text(path) if known is None else known
                self._made[path] = {
                    name: value.strip()
                    for name, _, value in (line.partition(":") for line in text.splitlines())
                }
        made: dict[str, str] = self._made[path]
        return made


def fd_of(hold: Hold) -> int:
    """The number of a descriptor."""
    return int(hold.detail.partition(" ")[0])


def named(task: ProcessFacts, hold: Hold) -> str:
    """How a sentence about a descriptor begins."""
    return f"{task.label} holds {subject(hold)}"


def subject(hold: Hold) -> str:
    """How a descriptor is called."""
    return f"fd {fd_of(hold)} → {hold.target}"
