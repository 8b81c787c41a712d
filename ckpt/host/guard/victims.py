"""Who lives in a cgroup and can be made to give memory back; and what is watched. Fits the port `Victims`."""

from __future__ import annotations

import os
from typing import Final

from ckpt.errors import NoSuchTarget, WrongState
from ckpt.host import cgroups
from ckpt.host.guard import controls
from ckpt.host.guard.memory import memory_cgroup_of, read_memory
from ckpt.host.guard.waiting import HostWaitingRoom
from ckpt.host.jobs import JobRegistry, JobView, memory_of
from ckpt.model.guarding import Victim, Watched
from ckpt.model.target import TargetRef
from ckpt.model.workload import TargetKind
from ckpt.units import ByteCount, JobName, Pid

_PSI_NAME: Final = "memory.pressure"
_PSI_OF_HOST: Final = "/proc/pressure/memory"


class HostVictims:
    """The jobs and processes of this host. Fits the port `Victims`."""

    def __init__(self, registry: JobRegistry) -> None:
        self._registry = registry

    def of(self, watched: Watched) -> tuple[Victim, ...]:
        """The jobs that live in it or below, or what else does."""
        views = [view for view in self._registry.list() if view.is_alive]
        if watched.job is not None:
            views = [view for view in views if view.name == watched.job]
        places = {view.name: _place_of(view) for view in views}
        jobs = [
            _job_victim(view, place)
            for view in views
            if (place := places[view.name]) and _is_below(place, watched.cgroup)
        ]
        if watched.job is not None:
            return tuple(jobs)
        return (*jobs, *_cgroup_victims(watched.cgroup, [each.cgroup for each in jobs]))

    def lives(self, watched: Watched) -> bool:
        """Whether there is still something to watch: the job runs, or the cgroup is there."""
        if watched.job is None:
            return os.path.isdir(watched.cgroup)
        try:
            return self._registry.look(watched.job).is_alive
        except NoSuchTarget:
            return False


def watched_job(registry: JobRegistry, job: JobName) -> Watched:
    """What is watched for a job that runs: the nearest cgroup at or above it that has a memory limit.

    For one that waits to be brought back it is what was watched before.

    Raises:
        NoSuchTarget: there is no such job.
        WrongState: it neither runs nor waits, or nothing limits its memory.
    """
    view = registry.look(job)
    told_in = registry.directory(job)
    if not view.is_alive:
        waiting = HostWaitingRoom(registry.state).find(TargetRef(kind=TargetKind.JOB, name=job))
        if waiting is not None:
            return Watched(
                cgroup=waiting.watched,
                job=job,
                is_own=waiting.watched == waiting.cgroup,
                psi=_psi_of(view.record.cgroup, waiting.watched),
                told_in=told_in,
            )
        raise WrongState(
            subject=f"Job {job}",
            state=view.state,
            operation="guarding it",
            needed="running",
            remedy="'ckpt restore' brings its last checkpoint back.",
        )
    place = _place_of(view)
    limited = next(controls.with_limits(place), None) if place else None
    if limited is None:
        raise WrongState(
            subject=f"Job {job}",
            state="without a memory limit",
            operation="guarding it",
            needed="with one",
            remedy="Start it with 'ckpt run --memory-max SIZE', or guard a cgroup above it that has a limit: --cgroup.",
        )
    return Watched(
        cgroup=limited,
        job=job,
        is_own=limited == place,
        psi=_psi_of(view.record.cgroup, limited),
        told_in=told_in,
    )


def watched_cgroup(name: str) -> Watched:
    """What is watched for a cgroup that the user named: absolute, or relative to a mount; itself, or the nearest above.

    Raises:
        NoSuchTarget: there is no such cgroup, or its memory is not accounted.
        WrongState: nothing limits its memory, or this very ckpt is in it.
    """
    hierarchy = controls.hierarchy()
    # A relative path means the hierarchy that accounts memory, before any other.
    inside = "" if hierarchy is None else f"{hierarchy.mountpoint}/{name.lstrip('/')}"
    found = (
        inside if inside and not name.startswith("/sys/") and os.path.isdir(inside) else cgroups.find(name)
    )
    place = None if found is None else _accounted(found)
    if place is None:
        raise NoSuchTarget(
            kind="cgroup whose memory is accounted,",
            name=name,
            remedy="Give its path below the mount of the memory controller, or --job.",
        )
    limited = next(controls.with_limits(place), None)
    if limited is None:
        raise WrongState(
            subject=f"The cgroup {place}",
            state="without a memory limit",
            operation="guarding it",
            needed="with one",
            remedy=f"Set one: {place}/{controls.limit_names(place)[-1]}."
            if cgroups.with_all_above(place)
            else "Name one below it: the top of the mount can have no limit.",
        )
    own = memory_cgroup_of(Pid(os.getpid()))
    if own is not None and _is_below(own, limited):
        raise WrongState(
            subject=f"The cgroup {limited}",
            state=f"that of this very ckpt (process {os.getpid()})",
            operation="guarding it",
            needed="another one",
            remedy="Run the guard outside: it must have memory when those in it have none.",
        )
    return Watched(cgroup=limited, is_own=limited == place, psi=_psi_of(limited, limited))


def _accounted(directory: str) -> str | None:
    """The memory cgroup that stands for a cgroup of any hierarchy: itself, or that of the processes in it."""
    if controls.has_controls(directory):
        return directory
    places = {memory_cgroup_of(pid) for pid in cgroups.processes_below(directory)} - {None}
    return cgroups.common_ancestor([each for each in places if each is not None]) if places else None


def _place_of(view: JobView) -> str:
    return memory_cgroup_of(view.record.root.pid) or ""


def _job_victim(view: JobView, place: str) -> Victim:
    reading = read_memory(place)
    # Others may be in the same cgroup: then its processes alone count.
    is_alone = set(cgroups.processes_below(place)) <= set(view.pids)
    usage = reading.usage if reading is not None and is_alone else memory_of((), view.pids)
    return Victim(
        ref=TargetRef(kind=TargetKind.JOB, name=view.name),
        job=view.name,
        cgroup=place,
        usage=ByteCount(usage),
    )


def _cgroup_victims(top: str, of_jobs: list[str]) -> list[Victim]:
    """The cgroups directly below that no job has to do with; where there is none, itself."""
    below = [each for each in cgroups.with_all_below(top) if os.path.dirname(each) == top]
    candidates = below or ([] if of_jobs else [top])
    found = []
    for each in candidates:
        reading = read_memory(each)
        if reading is None or any(_is_below(place, each) for place in of_jobs):
            continue
        if cgroups.processes_below(each):
            ref = TargetRef(kind=TargetKind.CGROUP, name=each)
            found.append(Victim(ref=ref, job=None, cgroup=each, usage=reading.usage))
    return found


def _psi_of(frozen: str, limited: str) -> str:
    """Where the kernel tells how long tasks waited for memory: in a version-2 cgroup, else of the whole host."""
    for path in (f"{limited}/{_PSI_NAME}", f"{frozen}/{_PSI_NAME}", _PSI_OF_HOST):
        if os.path.exists(path):
            return path
    return ""


def _is_below(cgroup: str, top: str) -> bool:
    return (cgroup + "/").startswith(top + "/")
