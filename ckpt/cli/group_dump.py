"""`ckpt dump --group`: the jobs of a group at one instant."""

from __future__ import annotations

from typing import Any, Final

from ckpt.cli import wiring_groups
from ckpt.cli.call import Call
from ckpt.cli.documents import group_dump_document
from ckpt.cli.dump_options import dump_options
from ckpt.cli.group_options import refuse_beside_group
from ckpt.flow.dump import DumpCall
from ckpt.flow.group_dump import GroupDumpCall, dump_group
from ckpt.model.group import GroupDumpReport
from ckpt.model.target import TargetRef
from ckpt.model.workload import TargetKind
from ckpt.units import JobName, human_bytes, milliseconds

_REFUSED: Final = {
    "pid": "--pid",
    "cgroup": "--cgroup",
    "name": "The name of a job",
    "job": "--name",
    "tag_names": "--tag, which names one checkpoint,",
    "with_files": "--with-files, which keeps files for one job,",
}


def dump_members(call: Call, group: JobName, given: dict[str, Any]) -> None:
    """Dump the jobs of the group that run, as the options of `ckpt dump` say.

    Raises:
        UsageError: an option that is about one job.
        NoSuchTarget, WrongState: there is no such group, or none of its jobs runs.
        GroupFailed: one of them could not be dumped, and so none was.
    """
    refuse_beside_group(given, _REFUSED)
    options = dump_options(given)
    output = call.output
    with wiring_groups.lock(group):
        running, absent = wiring_groups.running_members(group)
        members = tuple(view.name for view in running)
        wanted = tuple(
            DumpCall(
                target=TargetRef(kind=TargetKind.JOB, name=member),
                job=None,
                tags=(),
                message=given["message"],
                stop=given["stop"],
                options=options,
                freeze_timeout=given["freeze_timeout"],
                force=given["force"],
            )
            for member in members
        )
        report = dump_group(
            GroupDumpCall(instant=wiring_groups.new_instant(group, members), calls=wanted, warnings=absent),
            wiring_groups.group_dump_ports(call.store),
        )
    for warning in report.warnings:
        output.warn(warning)
    for member in report.members:
        for warning in member.warnings:
            output.warn(f"{member.checkpoint.job}: {warning}")
    output.result(
        group_dump_document(report), _text(report), brief="\n".join(each.id for each in report.members)
    )


def _text(report: GroupDumpReport) -> str:
    head = (
        f"group {report.name}, instant {report.instant}: {len(report.members)} job(s), frozen within "
        f"{milliseconds(report.skew_ns):.1f} ms of each other, in all {milliseconds(report.total_ns):.1f} ms"
    )
    lines = [
        f"  {each.id[:12]}  {each.checkpoint.job}: {'stopped' if each.stopped else 'running on'}, frozen "
        f"{milliseconds(each.checkpoint.frozen_ns):.1f} ms, images {human_bytes(each.checkpoint.image_bytes)}, "
        f"stored {human_bytes(each.stored_bytes)}"
        for each in report.members
    ]
    return "\n".join((head, *lines))
