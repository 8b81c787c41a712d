"""A job of a group goes on: with all others, from their newest complete instant."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ckpt.cli import wiring, wiring_groups
from ckpt.errors import WrongState
from ckpt.flow.group_resume import refuse_parts, resume_group
from ckpt.flow.restore import RestoreCall
from ckpt.flow.resume import Resumed
from ckpt.model.clocks import TimePolicy
from ckpt.model.inodes import InodePolicy
from ckpt.model.supervision import Supervision
from ckpt.units import JobName

if TYPE_CHECKING:
    from ckpt.host.outside import Joined


def resume_member(job: JobName, supervision: Supervision, joined: Joined) -> Resumed | None:
    """Restore the group of the job, whose lock is held; gives what became of this one, None where it is to be started.

    Raises:
        WrongState: it was moved to another host, or others run that it belongs together with.
        ObjectCorrupt: there are instants, and none of them is whole.
        GroupFailed: one of them could not be restored, and so none was.
    """
    group = JobName(supervision.group)
    registry = wiring.jobs()
    if host := registry.moved_to(job):
        raise WrongState(
            subject=f"Job {job}",
            state=f"moved to {host}",
            operation="a resume",
            needed="to be of this host",
            remedy=f"Look for it there; once it is of no use, 'ckpt rm-job {job}' forgets it here.",
        )
    if not wiring.is_there(supervision.store):
        return None
    store = wiring.open_store(supervision.store)
    running = tuple(view.name for view in registry.in_group(group) if view.is_alive)
    refuse_parts(job, group, running, store)
    how = RestoreCall(
        ref="", job=None, time=TimePolicy.SUSPEND, inodes=InodePolicy.KEEP, new_pids=False, cgroup=""
    )
    ports = wiring_groups.group_restore_ports(supervision.store, joining=job, joined=joined)
    resumed = resume_group(job, group, how, ports, store)
    if resumed is None:
        return None
    report = next(each for each in resumed.report.members if each.job == job)
    others = tuple(
        f"{each.job}: {warning}"
        for each in resumed.report.members
        if each.job != job
        for warning in each.warnings
    )
    return Resumed(report=report, damaged=(*resumed.damaged, *others))
