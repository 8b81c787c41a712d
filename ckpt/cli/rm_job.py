"""`ckpt rm-job`."""

from __future__ import annotations

import click

from ckpt.cli import wiring
from ckpt.cli.call import Call, make_command
from ckpt.cli.parameters import job_argument
from ckpt.units import JobName

GRACE_S = 10.0


@make_command("rm-job", example="ckpt rm-job web")
@job_argument
@click.option("--force", is_flag=True, help="Stop it first, if it runs.")
@click.pass_obj
def command(call: Call, name: str, *, force: bool) -> None:
    """Forget the job NAME, with its logs and its volumes; its checkpoints stay in the store."""
    wiring.require_root("ckpt rm-job")
    job = JobName(name)
    stopped = force and wiring.runs(job)
    if stopped:
        wiring.stop_job(job, GRACE_S)
    wiring.tidy_job(job)
    wiring.forget_job(job)
    call.output.result({"job": job, "stopped": stopped}, f"{job} is forgotten", brief="")
