"""From what the user named (a pid, a cgroup, a job) to what is there; locks; the right freezer.

Rules:
- What a controller that died has left is undone first: its cgroups and freezes must not be taken for the
  workload's own.
- A workload is frozen where it is if its cgroup holds nothing else, else it is gathered; see decisions/0005.
- Every refusal names the thing and the number, and what to do instead.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager

from ckpt.errors import CannotCheckpoint, NoSuchTarget
from ckpt.host import cgroups, recovery
from ckpt.host.freezer import CgroupFreezer, GatheringFreezer
from ckpt.host.freezer_control import control_of
from ckpt.host.gathering import Gathering, Members
from ckpt.host.jobs import JobRegistry
from ckpt.host.locks import exclusive
from ckpt.host.operations import JournaledOperation
from ckpt.host.process_table import ProcessStat, all_processes, descendants, stat_of, thread_group_of
from ckpt.model.target import Target, TargetRef
from ckpt.model.workload import TargetKind
from ckpt.units import JobName, Pid


class HostTargets:
    """The targets of this host. Fits the port `Targets`."""

    def __init__(self, state: str, job_cgroup: Callable[[JobName], str | None]) -> None:
        """Keep the locks below the directory `state`.

        Args:
            state: The state directory.
            job_cgroup: The absolute path of a job's cgroup; None if there is no such job.
        """
        self._state = state
        self._job_cgroup = job_cgroup

    def resolve(self, ref: TargetRef) -> Target:
        """The target as it is now.

        Raises:
            NoSuchTarget: no such process, cgroup or job, or it has no process.
            CannotCheckpoint: a kernel thread, this very process or an ancestor of it.
        """
        recovery.recover_dead(self._state)
        match ref.kind:
            case TargetKind.PID:
                return _resolve_pid(ref)
            case TargetKind.CGROUP:
                directory = cgroups.find(ref.name) if ref.name else None
                if directory is None:
                    raise NoSuchTarget(
                        kind="cgroup",
                        name=ref.name or "without a name",
                        remedy="Give its path in the file system, or as /proc/PID/cgroup shows it.",
                    )
                return _resolve_cgroup(ref, directory, job=None)
            case TargetKind.JOB:
                job = JobName(ref.name)
                place = self._job_cgroup(job)
                if place is None:
                    raise NoSuchTarget(kind="job", name=job, remedy="'ckpt ps' lists the jobs.")
                if not os.path.isdir(place) or not cgroups.processes_below(place):
                    host = JobRegistry(self._state).moved_to(job)
                    raise NoSuchTarget(
                        kind="running job",
                        name=job,
                        remedy=f"It was moved to {host}."
                        if host
                        else "'ckpt restore' brings its last checkpoint back.",
                    )
                return _resolve_cgroup(ref, place, job=job)

    def lock(self, target: Target) -> AbstractContextManager[None]:
        """Keep other ckpt processes off this workload.

        Each root is locked, and the cgroup: so --pid and --cgroup of the same workload meet.

        Raises:
            Locked: another one is at it; names its pid.
        """
        stats = [stat for root in target.roots if (stat := stat_of(root)) is not None]
        names = [f"process-{stat.pid}-{stat.start_ticks}" for stat in stats]
        if target.cgroup:
            names.append("cgroup-" + hashlib.sha256(os.fsencode(target.cgroup)).hexdigest()[:32])
        return exclusive(self._state + "/locks", names, subject=_named(target))

    def freezer(self, target: Target, operation: object) -> CgroupFreezer:
        """The freezer of this target; what it does is noted in the operation.

        Args:
            target: What resolve() gave.
            operation: One that JournaledOperations began. (It is an `object` because a port's adapter must
                take every Operation; another one is a bug.)

        Raises:
            CannotCheckpoint: it must be gathered, and a process lives in a threaded cgroup.
            FeatureMissing: it must be gathered, and this host has no freezer.
        """
        if not isinstance(operation, JournaledOperation):
            raise TypeError(operation)
        if target.cgroup:
            return CgroupFreezer(target.cgroup, operation)
        gathering = Gathering(
            subject=_named(target),
            operation_id=operation.id,
            members=_members_of(target),
            note=operation.note,
        )
        return GatheringFreezer(gathering, operation)


def _resolve_pid(ref: TargetRef) -> Target:
    if not ref.name.isdecimal() or (stat := stat_of(int(ref.name))) is None:
        raise NoSuchTarget(kind="process", name=ref.name)
    leader = thread_group_of(stat.pid)
    if leader is not None and leader != stat.pid:
        process = stat_of(leader)
        called = f" ({process.name})" if process is not None else ""
        raise NoSuchTarget(
            kind="process",
            name=ref.name,
            remedy=f"{stat.pid} is a thread of process {leader}{called}: use --pid {leader}.",
        )
    subject = f"process {stat.pid} ({stat.name})"
    table = all_processes()
    _refuse(subject, [stat], table)
    members = descendants((stat.pid,), table)
    return Target(ref=ref, cgroup=_own_cgroup(members), roots=(stat.pid,), job=None)


def _resolve_cgroup(ref: TargetRef, directory: str, *, job: JobName | None) -> Target:
    hierarchy = cgroups.hierarchy_of(directory)
    if hierarchy is None:
        raise NoSuchTarget(kind="cgroup", name=ref.name)
    subject = str(ref)
    if directory == hierarchy.mountpoint:
        raise CannotCheckpoint(
            target=subject,
            reasons=(f"it is the root of the hierarchy {hierarchy.name}, where the whole host lives",),
            remedy="Name a cgroup below it.",
        )
    table = all_processes()
    pids = _processes_below(subject, directory)
    if not pids:
        raise NoSuchTarget(kind="process in the cgroup", name=directory)
    if 0 in pids:
        raise CannotCheckpoint(
            target=subject,
            reasons=("it holds processes of a PID namespace that this one cannot see",),
            remedy="Run ckpt in the host's PID namespace.",
        )
    _refuse(subject, [table[pid] for pid in pids if pid in table], table)
    roots = tuple(sorted(pid for pid in pids if pid in table and table[pid].parent not in pids))
    frozen_in = directory if control_of(directory) is not None else _own_cgroup(pids)
    return Target(ref=ref, cgroup=frozen_in, roots=roots, job=job)


def _refuse(subject: str, members: Collection[ProcessStat], table: Mapping[Pid, ProcessStat]) -> None:
    """Refuse what can never be checkpointed, with every reason."""
    ourselves = _ourselves_and_above(table)
    reasons: list[str] = []
    for stat in members:
        name = f"process {stat.pid} ({stat.name})"
        if stat.pid == os.getpid():
            reasons.append(f"{name} is this very ckpt")
        elif stat.pid == 1:
            reasons.append(f"{name} is the init of this host")
        elif stat.pid in ourselves:
            reasons.append(f"{name} is an ancestor of this ckpt (process {os.getpid()})")
        elif stat.kernel_thread:
            reasons.append(f"{name} is a thread of the kernel")
        elif stat.ended and not _runs_on(stat.pid):
            reasons.append(f"{name} has ended, and waits for process {stat.parent} to notice")
    if reasons:
        ours = any(stat.pid in ourselves for stat in members)
        raise CannotCheckpoint(
            target=subject,
            reasons=tuple(reasons),
            remedy="Run ckpt from outside the workload." if ours else "",
        )


def _runs_on(pid: Pid) -> bool:
    """Whether threads are left of a process whose first thread has ended."""
    try:
        return len(os.listdir(f"/proc/{pid}/task")) > 1
    except FileNotFoundError:
        return False


def _ourselves_and_above(table: Mapping[Pid, ProcessStat]) -> set[Pid]:
    found: set[Pid] = set()
    pid = Pid(os.getpid())
    while pid in table and pid not in found:
        found.add(pid)
        pid = table[pid].parent
    return found


def _own_cgroup(members: Collection[Pid]) -> str:
    """A cgroup with a freezer that holds exactly these processes; "" if there is none."""
    # Version 2 where there is one: gathering is cheap, and CRIU is at home there.
    hierarchy = cgroups.unified() or cgroups.freezer_v1()
    if hierarchy is None:
        return ""
    places = {pid: place for pid in members if (place := cgroups.cgroup_of(pid, hierarchy)) is not None}
    # In this order: /proc shows a zombie in the root cgroup.
    alive = {pid for pid in places if (stat := stat_of(pid)) is not None and not stat.ended}
    if not alive:
        return ""
    place = cgroups.common_ancestor(places[pid] for pid in alive)
    if place == hierarchy.mountpoint or control_of(place) is None:
        return ""
    try:
        return place if set(cgroups.processes_below(place)) == alive else ""
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:  # a threaded cgroup: what it holds is not whole processes
            return ""
        raise


def _processes_below(subject: str, directory: str) -> set[Pid]:
    try:
        return set(cgroups.processes_below(directory))
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        raise CannotCheckpoint(
            target=subject,
            reasons=(f"{directory} holds a threaded cgroup, which has threads but no processes",),
            remedy="Name the domain cgroup above it.",
        ) from error


def _members_of(target: Target) -> Members:
    directory = cgroups.find(target.ref.name) if target.ref.kind is TargetKind.CGROUP else None

    def members(table: Mapping[Pid, ProcessStat], known: set[Pid]) -> set[Pid]:
        if directory is not None:
            return {pid for pid in cgroups.processes_below(directory) if pid in table}
        return descendants({*target.roots, *known}, table)

    return members


def _named(target: Target) -> str:
    if target.ref.kind is TargetKind.JOB:
        return f"job {target.ref.name}"
    return f"cgroup {target.cgroup}" if target.cgroup else str(target.ref)
