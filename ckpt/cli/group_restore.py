"""`ckpt restore --group`: the jobs of a group from one instant."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from ckpt.cli import wiring, wiring_groups
from ckpt.cli.call import Call
from ckpt.cli.documents import group_restore_document
from ckpt.cli.group_options import refuse_beside_group
from ckpt.errors import WrongState
from ckpt.flow.group_restore import (
    GroupRestoreCall,
    instant_of,
    newest_instant,
    restore_group,
)
from ckpt.flow.restore import RestoreCall
from ckpt.model.group import GroupRestoreReport, StoredInstant
from ckpt.units import JobName, milliseconds

_REFUSED: Final = {
    "cgroup": "--cgroup, which is the place of one job,",
    "job": "--name",
    "attach": "--attach",
    "lazy": "--lazy",
    "count": "--count",
}


def restore_members(call: Call, group: JobName, given: dict[str, Any], how: RestoreCall) -> None:
    """Bring back the newest complete instant of the group, or that of the checkpoint REF.

    Raises:
        UsageError: an option that is about one job.
        ObjectMissing: no such instant.
        WrongState: REF is of another group, or a member runs.
        GroupFailed: one of them could not be restored, and so none was.
    """
    refuse_beside_group(given, _REFUSED)
    output = call.output
    with wiring_groups.lock(group):
        store = wiring.open_store(call.store, create=False)
        instant = instant_of(how.ref, store) if how.ref else newest_instant(group, store)
        _check(group, how.ref, instant)
        report = restore_group(
            GroupRestoreCall(instant=instant, how=replace(how, ref="")),
            wiring_groups.group_restore_ports(call.store),
        )
    for member in report.members:
        for warning in member.warnings:
            output.warn(f"{member.job}: {warning}")
    output.result(
        group_restore_document(report),
        _text(report),
        brief="\n".join(str(member.pid) for member in report.members),
    )


def _check(group: JobName, ref: str, instant: StoredInstant) -> None:
    if instant.name != group:
        raise WrongState(
            subject=f"Checkpoint {ref}",
            state=f"of group {instant.name}",
            operation=f"a restore of group {group}",
            needed="one of its own",
            remedy=f"Say --group {instant.name}.",
        )
    registry = wiring.jobs()
    for stored in instant.checkpoints:
        if stored.checkpoint.job is not None:
            registry.refuse_running(stored.checkpoint.job)


def _text(report: GroupRestoreReport) -> str:
    lines = [
        f"  {each.job} from {each.id[:12]}: pid {', '.join(map(str, each.pids))}" for each in report.members
    ]
    head = (
        f"group {report.name} runs again from instant {report.instant}, in all "
        f"{milliseconds(report.total_ns):.1f} ms"
    )
    return "\n".join((head, *lines))
