"""`ckpt dump`."""

from __future__ import annotations

from typing import Any

import click

from ckpt.cli import wiring
from ckpt.cli.call import Call, make_command
from ckpt.cli.documents import dump_document
from ckpt.cli.dump_options import dump_options, dump_parameters
from ckpt.cli.group_options import group_option
from ckpt.cli.parameters import (
    duration_above_zero,
    job_name,
    tag_name,
    target_parameters,
    target_ref,
)
from ckpt.cli.progress import telling
from ckpt.flow.dump import DumpCall
from ckpt.flow.dump import dump as take_checkpoint
from ckpt.model.checkpoint import Checkpoint
from ckpt.model.reports import DumpReport
from ckpt.model.workload import TargetKind
from ckpt.units import JobName, human_bytes, milliseconds


@make_command("dump", example="ckpt dump web --tag before-upgrade")
@target_parameters
@group_option("All jobs of this group that run, in place of a TARGET: frozen together, at one instant.")
@click.option("--stop", is_flag=True, help="Kill the workload once the checkpoint is durable, never before.")
@click.option(
    "--name", "job", type=job_name, metavar="JOB", help="File the checkpoint under this job's name."
)
@click.option(
    "--tag", "tag_names", type=tag_name, multiple=True, metavar="T", help="Tag it; may be repeated."
)
@click.option("-m", "--message", default="", metavar="M", help="A note that is kept with the checkpoint.")
@click.option(
    "--with-files",
    type=click.Path(),
    multiple=True,
    metavar="PATH",
    help="Keep this file, or all regular files in this directory, as they are at the freeze; may be repeated.",
)
@dump_parameters
@click.option("--force", is_flag=True, help="Try it although 'ckpt check' says that it will fail.")
@click.option(
    "--freeze-timeout",
    type=duration_above_zero,
    default="10s",
    show_default=True,
    metavar="DURATION",
    help="Give up, and thaw, if a task has not stopped by then.",
)
@click.pass_obj
def command(call: Call, /, **given: Any) -> None:
    """Take a checkpoint of TARGET: --pid N, --cgroup PATH or a job's NAME.

    Without --stop the workload runs on afterwards. Everything is dumped under one freeze, at one instant.
    With --group that is so for all jobs of the group; each has a checkpoint of its own, and if one cannot be dumped none
    is kept.

    Of a supervised job ('ckpt run --every') its logs and the files of its --with-files are kept, too.
    """
    wiring.require_root("ckpt dump")
    if given["group"] is not None:
        from ckpt.cli.group_dump import dump_members  # noqa: PLC0415 - others need none of it

        dump_members(call, given["group"], given)
        return
    target = target_ref(given["pid"], given["cgroup"], given["name"])
    job = JobName(target.name) if target.kind is TargetKind.JOB else None
    # So that one that goes on from this checkpoint finds the files of the same moment, too.
    files, appended = wiring.saved_with(job) if job is not None else ((), ())
    wanted = DumpCall(
        target=target,
        job=given["job"],
        tags=tuple(dict.fromkeys(given["tag_names"])),
        message=given["message"],
        stop=given["stop"],
        options=dump_options(given),
        freeze_timeout=given["freeze_timeout"],
        with_files=tuple(dict.fromkeys((*given["with_files"], *files))),
        appended=appended,
        force=given["force"],
    )
    output = call.output
    with telling(output) as announce:
        ports = wiring.dump_ports(call.store, announce)
        report = wiring.beside_supervisor(job, lambda: take_checkpoint(wanted, ports))
    for warning in report.warnings:
        output.warn(warning)
    output.result(dump_document(report), _text(report), brief=report.id)


def _saved(checkpoint: Checkpoint) -> tuple[str, ...]:
    if not checkpoint.saved_files:
        return ()
    return (f"  {len(checkpoint.saved_files)} file(s) saved, {human_bytes(checkpoint.saved_bytes)}",)


def _text(report: DumpReport) -> str:
    checkpoint = report.checkpoint
    workload = checkpoint.workload
    trees = f" in {len(workload.trees)} trees" if len(workload.trees) > 1 else ""
    sizes = (
        f"images {human_bytes(checkpoint.image_bytes)}, new {human_bytes(report.new_bytes)}, "
        f"stored {human_bytes(report.stored_bytes)}"
    )
    return "\n".join(
        (
            f"{report.id[:12]}{f'  {checkpoint.job}' if checkpoint.job else ''}",
            f"  {workload.process_count} process(es){trees}, {'stopped' if report.stopped else 'running on'}",
            *_saved(checkpoint),
            f"  frozen {milliseconds(checkpoint.frozen_ns):.1f} ms, in all {milliseconds(report.total_ns):.1f} ms",
            f"  {sizes}",
        )
    )
