"""`ckpt wait`."""

from __future__ import annotations

import click

from ckpt.cli import wiring
from ckpt.cli.call import Call, make_command
from ckpt.cli.documents import rfc3339
from ckpt.cli.parameters import job_argument
from ckpt.units import JobName


@make_command("wait", example="ckpt wait web")
@job_argument
@click.pass_obj
def command(call: Call, name: str) -> int:
    """Wait until the job NAME has ended, and exit with its code (128 + N if signal N ended it)."""
    wiring.require_root("ckpt wait")
    ended = wiring.jobs().wait(JobName(name))
    assert ended is not None  # there was no timeout
    code = ended.shell_code
    how = f"signal {ended.signal}" if ended.code is None else f"exit code {code}"
    call.output.result(
        {"job": name, "exit_code": code, "signal": ended.signal, "ended": rfc3339(ended.when)},
        f"{name} ended: {how}",
        brief="",
    )
    return code
