"""Where adapters meet the ports of `ckpt suspend` and `ckpt resume`; mypy proves here that they fit.

Rule: adapters are imported when a command needs them, so that the others stay quick.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from ckpt.cli import wiring
from ckpt.cli.progress import Teller
from ckpt.flow.dump import DumpCall
from ckpt.flow.suspend import ResumePorts, SuspendCall, SuspendPorts, suspend
from ckpt.model.supervision import Reason
from ckpt.model.suspended import Owner
from ckpt.model.target import TargetRef
from ckpt.model.workload import TargetKind
from ckpt.units import SECOND, CheckpointId, JobName, Nanoseconds

if TYPE_CHECKING:
    from ckpt.flow.resume import Resumed
    from ckpt.host.suspended import HostSuspendedJobs
    from ckpt.model.checkpoint import DumpOptions
    from ckpt.model.clocks import TimePolicy
    from ckpt.model.group import GroupRestoreReport
    from ckpt.model.inodes import InodePolicy

_AGAIN_S: Final = 0.1
_SUPERVISOR_PATIENCE_S: Final = 5.0
_FREEZE_TIMEOUT: Final = Nanoseconds(10 * SECOND)


def suspended_jobs() -> HostSuspendedJobs:
    """The jobs of this host that were suspended."""
    from ckpt.host.suspended import HostSuspendedJobs  # noqa: PLC0415

    return HostSuspendedJobs(wiring.jobs())


@dataclass(frozen=True, slots=True, kw_only=True)
class How:
    """How jobs are suspended that nobody supervises: into which store and with which options; and how all come back."""

    place: str
    options: DumpOptions
    time: TimePolicy
    inodes: InodePolicy


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """A job that was suspended, as it is told."""

    job: JobName
    id: CheckpointId | None
    store: str
    resumed_by: Owner


def suspend_job(job: JobName, how: How, announce: Teller) -> Done:
    """Suspend a job that is in no group; raises what flow/suspend.py does, and what the wiring does."""
    from ckpt.host.clock import HostClock  # noqa: PLC0415

    call = _suspend_call(job, how)
    ports = SuspendPorts(
        clock=HostClock(), suspended=suspended_jobs(), dump=wiring.dump_ports(call.store, announce)
    )
    record = suspend(call, ports)
    return Done(job=job, id=record.checkpoint, store=record.store, resumed_by=call.owner)


def suspend_group(group: str, how: How) -> tuple[Done, ...]:
    """Suspend the jobs of a group that run; raises what flow/suspend_group.py does, and what the wiring does."""
    from ckpt.cli import wiring_groups  # noqa: PLC0415
    from ckpt.flow.suspend_group import GroupSuspendCall, GroupSuspendPorts  # noqa: PLC0415
    from ckpt.flow.suspend_group import suspend_group as suspend_all  # noqa: PLC0415
    from ckpt.host.clock import HostClock  # noqa: PLC0415

    name = JobName(group)
    with wiring_groups.lock(name):
        running, _absent = wiring_groups.running_members(name)
        members = tuple(view.name for view in running)
        calls = tuple(_suspend_call(member, how) for member in members)
        call = GroupSuspendCall(instant=wiring_groups.new_instant(name, members), calls=calls)
        place = calls[0].store
        records = suspend_all(
            call,
            GroupSuspendPorts(
                clock=HostClock(),
                suspended=suspended_jobs(),
                dump=wiring_groups.group_dump_ports(place),
                store=wiring.open_store(place),
            ),
        )
    return tuple(
        Done(job=each.job, id=each.checkpoint, store=each.store, resumed_by=call.owner) for each in records
    )


def _suspend_call(job: JobName, how: How) -> SuspendCall:
    """How this job is suspended: as its supervisor takes checkpoints, if it has one.

    Raises:
        ObjectCorrupt: what its supervisor does cannot be read.
        StoreUnusable: a URL of a kind that ckpt does not know.
    """
    from ckpt.host import supervision  # noqa: PLC0415
    from ckpt.host.vanishing import vanishing_files  # noqa: PLC0415

    registry = wiring.jobs()
    supervised = supervision.load(registry, job)
    files = vanishing_files(registry.look(job).pids)
    appended: tuple[str, ...] = ()
    if supervised is not None:
        files = tuple(dict.fromkeys((*supervised.with_files, *files)))
        appended = supervision.appended_files(registry, job, supervised.log)
    return SuspendCall(
        job=job,
        store=os.path.abspath(wiring.local_path(how.place if supervised is None else supervised.store)),
        dump=DumpCall(
            target=TargetRef(kind=TargetKind.JOB, name=job),
            job=None,
            tags=(),
            message=Reason.SUSPEND,
            stop=True,
            options=how.options if supervised is None else supervised.options,
            freeze_timeout=_FREEZE_TIMEOUT,
            with_files=files,
            appended=appended,
        ),
        owner=suspended_jobs().owner(job),
        time=how.time,
        inodes=how.inodes,
    )


def resume_ports(place: str, announce: Teller) -> ResumePorts:
    """Everything that bringing a job back from this store needs; raises what wiring.restore_ports() does."""
    # First of all: one whose file system is not mounted yet must not be made anew, empty, in its place.
    store = wiring.open_store(place, create=False)
    return ResumePorts(
        suspended=suspended_jobs(),
        restore=wiring.restore_ports(place, announce),
        store=store,
        jobs=wiring.jobs(),
    )


def resume_group(jobs: Sequence[JobName], group: str, place: str) -> GroupRestoreReport | None:
    """Bring the jobs of a group back that were suspended together; raises what flow/suspend_group.py does."""
    from ckpt.cli import wiring_groups  # noqa: PLC0415
    from ckpt.flow.suspend_group import GroupResumePorts, bring_group_back  # noqa: PLC0415

    with wiring_groups.lock(JobName(group)):
        store = wiring.open_store(place, create=False)  # not made: see resume_ports()
        ports = GroupResumePorts(
            suspended=suspended_jobs(), restore=wiring_groups.group_restore_ports(place), store=store
        )
        return bring_group_back(jobs, ports)


def group_goes_on(job: JobName) -> Resumed | None:
    """Restore the group of a job that ran when the host went down; None if it runs, or has no checkpoint.

    Raises what flow/group_resume.py does.
    """
    from ckpt.cli import wiring_groups  # noqa: PLC0415
    from ckpt.cli.group_resuming import resume_member  # noqa: PLC0415
    from ckpt.host import supervision  # noqa: PLC0415
    from ckpt.host.outside import NOTHING_JOINED  # noqa: PLC0415

    found = supervision.load(wiring.jobs(), job)
    if found is None:
        return None
    with wiring_groups.lock(JobName(found.group)):
        return None if wiring.runs(job) else resume_member(job, found, NOTHING_JOINED)


def group_of(job: JobName) -> str:
    """The group that the job is in; "" for none."""
    record = wiring.jobs().find(job)
    return "" if record is None else record.group


def store_of(job: JobName) -> str:
    """Where the checkpoints of a job go that is supervised; "" for one that is not.

    Raises:
        ObjectCorrupt: what its supervisor does cannot be read.
    """
    from ckpt.host import supervision  # noqa: PLC0415

    supervised = supervision.load(wiring.jobs(), job)
    return "" if supervised is None else supervised.store


def supervise_again(job: JobName) -> bool:
    """Start the supervisor of a job that runs, if it is one in the background and there is none; whether it was started.

    Raises:
        CkptError: it did not start.
    """
    from ckpt.host import supervision  # noqa: PLC0415

    if not suspended_jobs().has_supervisor_of_its_own(job) or not wiring.runs(job):
        return False
    # The one that has seen the job end may need a moment to end, too.
    ends = time.monotonic() + _SUPERVISOR_PATIENCE_S
    while supervision.supervisor_of(wiring.jobs(), job) is not None:
        if time.monotonic() >= ends:
            return False
        time.sleep(_AGAIN_S)
    from ckpt.cli.supervise import start_supervisor  # noqa: PLC0415

    start_supervisor(job)
    return True
