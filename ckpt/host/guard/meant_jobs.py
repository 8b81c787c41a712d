"""Which jobs are meant when another program names a victim: a process, a cgroup, or a job.

Rule: nothing is read that a task under memory pressure can hold up (its memory maps, its command line).
Source: proc_pid_smaps(5) and proc_pid_cmdline(5): the kernel takes the lock of the task's memory for both.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

from ckpt.errors import NoSuchTarget, ObjectCorrupt, WrongState
from ckpt.host import cgroups
from ckpt.host.guard.memory import memory_cgroup_of, read_memory
from ckpt.host.jobs import JobRecord, JobRegistry
from ckpt.host.process_table import boot_id, is_alive
from ckpt.model.guarding import Victim
from ckpt.model.target import TargetRef
from ckpt.model.workload import TargetKind
from ckpt.units import ByteCount, JobName, Pid


def job_called(name: JobName, registry: JobRegistry) -> Victim:
    """The job of this name.

    Raises:
        NoSuchTarget, ObjectCorrupt: there is no such job, or its record cannot be read.
        WrongState: it does not run.
    """
    record = registry.load(name)
    if not _runs(record):
        raise WrongState(
            subject=f"Job {name}",
            state="not running",
            operation="bringing it away",
            needed="running",
            remedy="'ckpt ps' shows the state of all jobs.",
        )
    return _victim(record)


def job_with(pid: Pid, registry: JobRegistry) -> Victim:
    """The job that the process belongs to.

    Raises:
        NoSuchTarget: it is part of none.
    """
    for record in _running(registry):
        if pid in _members(record):
            return _victim(record)
    raise NoSuchTarget(
        kind="running job with process",
        name=str(pid),
        remedy="What 'ckpt run' started can be brought away; 'ckpt ps' lists the jobs.",
    )


def jobs_in(directory: str, registry: JobRegistry) -> tuple[Victim, ...]:
    """The jobs with a process in this cgroup or below it, the largest first."""
    inside = set(cgroups.processes_below(directory))
    found = [_victim(record) for record in _running(registry) if not inside.isdisjoint(_members(record))]
    return tuple(sorted(found, key=lambda victim: (-victim.usage, victim.label)))


def _running(registry: JobRegistry) -> Iterator[JobRecord]:
    for name in registry.names():
        with suppress(NoSuchTarget, ObjectCorrupt):
            record = registry.load(name)
            if _runs(record):
                yield record


def _runs(record: JobRecord) -> bool:
    return record.boot_id == boot_id() and is_alive(record.root)


def _members(record: JobRecord) -> set[Pid]:
    return {record.root.pid, *cgroups.processes_below(record.cgroup)}


def _victim(record: JobRecord) -> Victim:
    place = memory_cgroup_of(record.root.pid) or ""
    reading = read_memory(place)
    return Victim(
        ref=TargetRef(kind=TargetKind.JOB, name=record.name),
        job=record.name,
        cgroup=place,
        usage=ByteCount(0) if reading is None else reading.usage,
    )
