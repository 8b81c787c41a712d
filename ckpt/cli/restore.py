"""`ckpt restore`."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any, Final

import click

from ckpt.cli import wiring
from ckpt.cli.attachment import attend, sources_of
from ckpt.cli.call import Call, make_command, usage
from ckpt.cli.documents import problem_of, restore_document
from ckpt.cli.group_options import group_option
from ckpt.cli.output import Output
from ckpt.cli.parameters import job_name
from ckpt.cli.progress import telling
from ckpt.cli.relaying import Source
from ckpt.cli.restore_options import inodes_option, pids_option, time_option
from ckpt.cli.suggestions import refs
from ckpt.codec.names import refuse_label
from ckpt.errors import BadName, CkptError, Interrupted, Problems
from ckpt.flow.restore import RestoreCall, RestorePorts
from ckpt.flow.restore import restore as bring_back
from ckpt.model.checkpoint import GroupInstant
from ckpt.model.clocks import TimePolicy
from ckpt.model.inodes import FilesPolicy, InodeMethod, InodePolicy
from ckpt.model.reports import RestoreReport
from ckpt.units import JobName, milliseconds

_METHODS: Final = {
    InodeMethod.SAME: "the same",
    InodeMethod.PINNED: "pinned and put back",
    InodeMethod.PLACED: "placed under their numbers",
    InodeMethod.VIRTUAL: "shown under their numbers",
    InodeMethod.FUSE: "shown under their inode numbers on another device",
    InodeMethod.NONE: "under other numbers",
}


@make_command("restore", example="ckpt restore web@latest")
@click.argument("ref", metavar="REF", required=False, shell_complete=refs)
@group_option(
    "All jobs of this group, from its newest complete instant or that of REF: together, or none of them."
)
@time_option("What the workload's clocks make of the time since the dump.")
@inodes_option(
    "What to do about files that changed. keep refuses changed content, and lets the workload see the devices "
    "and inode numbers that it saw; verify refuses any change; ignore leaves it to CRIU."
)
@click.option(
    "--files",
    type=click.Choice([policy.value for policy in FilesPolicy]),
    help="The contents of files: saved writes back those that the checkpoint has (the default if it has any), newest "
    "leaves all as they are, although the memory is older. Without either they must be as they were.",
)
@pids_option("The host's same pids, or a PID namespace of its own.")
@click.option(
    "--cgroup", default="", metavar="PATH", help="Restore into this cgroup instead of one of our own."
)
@click.option("--name", "job", type=job_name, metavar="JOB", help="File it under this job's name.")
@click.option("--attach", is_flag=True, help="Stay: relay output and signals, exit with the workload's code.")
@click.option(
    "--lazy",
    is_flag=True,
    help="Let it go on before its private memory is there: what it touches comes at once, the rest bit by bit. The "
    "command returns when all is there; where that cannot come the workload is ended.",
)
@click.option(
    "--count",
    type=click.IntRange(1, 1000),
    metavar="N",
    help="Restore N copies, named JOB-1 to JOB-N; needs --pids new.",
)
@click.pass_obj
def command(call: Call, /, **given: Any) -> int:
    """Bring the checkpoint REF back: an id or its beginning, a tag, JOB, JOB@latest or JOB~1.

    Everything is read and verified before anything is started; with --lazy private memory when it comes. The workload
    runs detached unless --attach.

    \b
    --time      CLOCK_MONOTONIC                 CLOCK_BOOTTIME
    suspend     goes on from the freeze         goes on, plus the time since then
    continue    goes on from the freeze         goes on from the freeze
    elapsed     goes on, plus the time since    the same
    host        the host's                      the host's
    """  # noqa: D301 - the backspace is click's mark for lines to keep
    wiring.require_root("ckpt restore")
    _check(call, given)
    wanted = RestoreCall(
        ref=given["ref"] or "",
        job=given["job"],
        time=TimePolicy(given["time"]),
        inodes=InodePolicy(given["inodes"]),
        new_pids=given["pids"] == "new",
        cgroup=given["cgroup"],
        files=None if given["files"] is None else FilesPolicy(given["files"]),
    )
    if given["group"] is not None:
        from ckpt.cli.group_restore import restore_members  # noqa: PLC0415 - others need none of it

        restore_members(call, given["group"], given, wanted)
        return 0
    output = call.output
    with telling(output) as announce:
        ports = wiring.restore_ports(call.store, announce, lazy=given["lazy"])
        if given["count"] is not None:
            return _restore_copies(wanted, given["count"], ports, output)
        sources = _outputs(wanted, ports) if given["attach"] else []
        moved = _warning_of_move(_job_of(wanted, ports))
        alone = _warning_of_group(ports.store.load(ports.store.resolve(wanted.ref)).checkpoint.group)
        report = bring_back(wanted, ports)
        report = replace(report, warnings=(*moved, *alone, *report.warnings))
    _warn(report, output)
    if given["attach"]:
        return attend(wiring.jobs(), report.job, sources)
    output.result(restore_document(report), _text(report), brief=str(report.pid))
    return 0


def _check(call: Call, given: dict[str, Any]) -> None:
    if given["ref"] is None and given["group"] is None:
        raise usage("Say which: REF names a checkpoint, --group G the newest instant of a group.")
    if given["attach"] and call.json:
        raise usage("--attach gives stdout to the workload, so --json has no place for its document.")
    if given["lazy"] and (given["attach"] or given["count"] is not None):
        raise usage(f"--lazy and {'--attach' if given['attach'] else '--count'} exclude each other.")
    if given["count"] is None:
        return
    if given["count"] > 1 and given["pids"] != "new":
        raise usage("Several copies cannot have the same pids: add --pids new.")
    if given["attach"] or given["cgroup"]:
        raise usage(f"--count and {'--attach' if given['attach'] else '--cgroup'} exclude each other.")


def _outputs(wanted: RestoreCall, ports: RestorePorts) -> list[Source]:
    """Where the workload's output will go, as it stands before the restore: what is new is to be relayed."""
    return sources_of(wiring.jobs(), _job_of(wanted, ports), from_now=True)


def _job_of(wanted: RestoreCall, ports: RestorePorts) -> JobName:
    """The name that it will be filed under."""
    checkpoint = ports.store.resolve(wanted.ref)
    return wanted.job or ports.store.load(checkpoint).checkpoint.job or JobName(checkpoint[:12])


def _warning_of_move(job: JobName) -> tuple[str, ...]:
    """A sentence if the job was handed over to another host: then there may be two of it from now on."""
    host = wiring.jobs().moved_to(job)
    return (
        (f"{job} was moved to {host}: unless it has ended there, it runs on both hosts now",) if host else ()
    )


def _warning_of_group(group: GroupInstant | None) -> tuple[str, ...]:
    """A sentence if there were others at that instant, which are not brought back."""
    if group is None or len(group.members) == 1:
        return ()
    others = ", ".join(group.members)
    return (
        f"it is brought back alone: --group {group.name} brings back all that stood still then, {others}",
    )


def _restore_copies(wanted: RestoreCall, count: int, ports: RestorePorts, output: Output) -> int:
    """Restore every copy that can be; what went wrong with the others is told at the end."""
    checkpoint = ports.store.resolve(wanted.ref)
    base = _job_of(wanted, ports)
    if (
        count > 1
        and wanted.files is not FilesPolicy.NEWEST
        and ports.store.load(checkpoint).checkpoint.saved_files
    ):
        raise usage("Several copies cannot each have the saved files: add --files newest, or restore one.")
    if refuse_label(f"{base}-{count}"):
        raise BadName(kind="job", name=f"{base}-{count}")
    reports: list[RestoreReport] = []
    failures: list[tuple[str, CkptError]] = []
    for number in range(1, count + 1):
        name = JobName(f"{base}-{number}")
        try:
            reports.append(bring_back(replace(wanted, ref=checkpoint, job=name), ports))
        except Interrupted:
            raise
        except CkptError as error:
            failures.append((name, error))
    for report in reports:
        _warn(report, output)
    if not reports:
        raise failures[0][1]
    document: dict[str, Any] = {"restored": [restore_document(report) for report in reports]}
    document["problems"] = [problem_of(name, error) for name, error in failures]
    lines = [_text(report) for report in reports]
    lines += [f"{name}: {error.message}" for name, error in failures]
    output.result(document, "\n".join(lines), brief="\n".join(str(report.pid) for report in reports))
    return Problems.exit_code if failures else 0


def _warn(report: RestoreReport, output: Output) -> None:
    for warning in report.warnings:
        output.warn(warning)


def _text(report: RestoreReport) -> str:
    pids = ", ".join(map(str, report.pids))
    counts = Counter(outcome.method for outcome in report.inodes)
    kept = ", ".join(f"{counts[method]} {_METHODS[method]}" for method in InodeMethod if counts[method])
    return (
        f"{report.job} runs again from {report.id[:12]}: pid {pids}, restored in "
        f"{milliseconds(report.restore_ns):.1f} ms, in all {milliseconds(report.total_ns):.1f} ms"
        + (
            f", its memory behind it: it went on after {milliseconds(report.resumed_ns):.1f} ms"
            if report.lazy
            else ""
        )
        + (f"\n  files: {kept}" if kept else "")
    )
