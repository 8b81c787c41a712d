"""`ckpt logs`."""

from __future__ import annotations

import click

from ckpt.cli import wiring
from ckpt.cli.attachment import follow, sources_of
from ckpt.cli.call import Call, make_command, usage
from ckpt.cli.parameters import job_argument
from ckpt.errors import Interrupted
from ckpt.units import JobName


@make_command("logs", example="ckpt logs -f web")
@job_argument
@click.option("-f", "--follow", "following", is_flag=True, help="Go on until the job ends.")
@click.pass_obj
def command(call: Call, name: str, *, following: bool) -> int:
    """Print what the job NAME wrote.

    A detached job, or one with --log, has one log for both outputs; of a foreground job the standard error
    is kept apart, and printed on stderr.
    """
    wiring.require_root("ckpt logs")
    registry = wiring.jobs()
    job = JobName(name)
    record = registry.load(job)
    sources = sources_of(registry, job, from_now=False)
    if call.json:
        if following:
            raise usage("--json prints one document, so it cannot --follow.")
        texts = [_text(source.path) for source in sources]
        call.output.result(
            {"job": job, "log": sources[0].path, "stdout": texts[0], "stderr": "".join(texts[1:])}, ""
        )
        return 0
    if not following:
        for source in sources:
            source.relay()
        return 0
    try:
        follow(record, sources)
    except Interrupted:
        # Whoever follows a log ends it like this: that is no failure worth a word.
        return Interrupted.exit_code
    return 0


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            return stream.read()
    except FileNotFoundError:
        return ""
