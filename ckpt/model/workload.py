"""What is checkpointed: a cgroup, the process trees in it, and the namespaces that they live in."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from ckpt.model.clocks import TimeOffsets
from ckpt.units import Pid


class TargetKind(StrEnum):
    """How the workload was named when it was checkpointed."""

    PID = "pid"
    CGROUP = "cgroup"
    JOB = "job"


@dataclass(frozen=True, slots=True, kw_only=True)
class Namespace:
    """One namespace of a tree's root: `own` says whether it is another one than the host's (PID 1's)."""

    kind: str
    inode: int
    own: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """One process at the freeze.

    `pid` and `parent` are as this host saw them; `pid_inside` is the number in the process's own PID
    namespace. `threads` are the host's thread ids, the leader's first. `cgroup` is relative to the
    workload's cgroup, "" for that one itself.
    """

    pid: Pid
    pid_inside: Pid
    parent: Pid
    name: str
    state: str
    threads: tuple[Pid, ...]
    command_line: tuple[str, ...]
    uid: int
    gid: int
    capabilities: int
    seccomp: int
    cgroup: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """One process tree: its root first, parents before their children."""

    root: Pid
    processes: tuple[Process, ...]
    namespaces: tuple[Namespace, ...]
    time_offsets: TimeOffsets

    def owns(self, kind: str) -> bool:
        """Whether the root lives in another namespace of this kind ("pid", "mnt" …) than the host."""
        return any(namespace.kind == kind and namespace.own for namespace in self.namespaces)


@dataclass(frozen=True, slots=True, kw_only=True)
class CgroupSetting:
    """One file of a cgroup that can be written back, as text without the final newline."""

    name: str
    value: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CgroupRecord:
    """A cgroup that belonged to the workload alone, and is made again where it is missing.

    `hierarchy` is "unified" for version 2, else the version-1 controllers as /proc/self/cgroup names them
    ("memory", "cpu,cpuacct", "name=systemd"). `path` is relative to the hierarchy's mount, with a leading
    slash; `members` are the host pids in this very cgroup.
    """

    hierarchy: str
    path: str
    settings: tuple[CgroupSetting, ...]
    members: tuple[Pid, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExternalMount:
    """A mount that CRIU does not save: at restore the host's mount at the same place is bound instead."""

    key: str
    mountpoint: str
    filesystem: str
    source: str
    root: str


class OutsideKind(StrEnum):
    """What kind of channel a workload shares with a process outside."""

    PIPE = "pipe"
    TTY = "tty"


@dataclass(frozen=True, slots=True, kw_only=True)
class OutsideFile:
    """A pipe or terminal whose other end was held outside the workload.

    `key` names it to CRIU at restore ("pipe:[4242]", "tty[8800:23]"); `pid` and `fd` are one holder;
    `writes` says whether the workload writes to it.
    """

    kind: OutsideKind
    key: str
    pid: Pid
    fd: int
    writes: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Everything that one freeze stopped.

    `cgroup` is the cgroup's absolute path in this host's file system, "" for a workload that had none of its
    own.
    """

    kind: TargetKind
    cgroup: str
    trees: tuple[Tree, ...]
    cgroups: tuple[CgroupRecord, ...]
    external_mounts: tuple[ExternalMount, ...]
    outside_files: tuple[OutsideFile, ...]

    @property
    def process_count(self) -> int:
        """How many processes all trees have together."""
        return sum(len(tree.processes) for tree in self.trees)
