"""What the user named: a process, a cgroup or a job; and what that turned out to be on this host."""

from __future__ import annotations

from dataclasses import dataclass

from ckpt.model.workload import TargetKind
from ckpt.units import JobName, Pid


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetRef:
    """A target as the user named it: `name` is the pid's digits, the cgroup's path or the job's name."""

    kind: TargetKind
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A target that exists.

    `cgroup` is the absolute path of a cgroup directory that holds the workload and nothing else, which can
    be frozen where it is; "" where there is none, and the processes below `roots` must be gathered into one
    of ours for the time of the dump. `roots` are the roots of its trees at the time of the look-up.
    """

    ref: TargetRef
    cgroup: str
    roots: tuple[Pid, ...]
    job: JobName | None
