"""`ckpt stop`."""

from __future__ import annotations

import click

from ckpt.cli import wiring
from ckpt.cli.call import Call, make_command
from ckpt.cli.parameters import duration, job_argument
from ckpt.host.guard.waiting import forget
from ckpt.units import SECOND, JobName, Nanoseconds

END_PATIENCE_S = 10.0


@make_command("stop", example="ckpt stop web --grace 30s")
@job_argument
@click.option(
    "--grace",
    type=duration,
    default="10s",
    show_default=True,
    metavar="DURATION",
    help="How long it may take to end by itself.",
)
@click.pass_obj
def command(call: Call, name: str, grace: Nanoseconds) -> None:
    """End the job NAME: SIGTERM to it, and after the grace period SIGKILL to everything in its cgroup."""
    wiring.require_root("ckpt stop")
    job = JobName(name)
    by_itself = wiring.stop_job(job, grace / SECOND)
    # Ended on purpose: no guard brings it back.
    forget(wiring.state(), job)
    ended = wiring.jobs().wait(job, END_PATIENCE_S)
    code = None if ended is None else ended.shell_code
    call.output.result(
        {"job": job, "killed": not by_itself, "exit_code": code},
        f"{job} {'ended' if by_itself else 'was killed'}" + ("" if code is None else f", exit code {code}"),
        brief="",
    )
