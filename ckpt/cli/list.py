"""`ckpt list`."""

from __future__ import annotations

import builtins

import click

from ckpt.cli import wiring
from ckpt.cli.call import Call, make_command
from ckpt.cli.documents import list_document, plain, rfc3339
from ckpt.cli.output import columns
from ckpt.cli.parameters import job_name
from ckpt.errors import Problems
from ckpt.model.reports import Problem, StoredCheckpoint
from ckpt.units import human_bytes, milliseconds

HEADER = ("ID", "JOB", "CREATED", "FROZEN", "SIZE", "STORED", "TAGS")


@make_command("list", example="ckpt list --job web")
@click.option("--job", type=job_name, metavar="J", help="Only the checkpoints of this job.")
@click.pass_obj
def command(call: Call, job: str | None) -> int:
    """List the checkpoints in the store, oldest first.

    A checkpoint that cannot be read is named on stderr, and the exit code is 3.
    """
    problems: builtins.list[Problem] = []
    found = wiring.open_store(call.store).list(on_problem=problems.append)
    chosen = [stored for stored in found if job is None or stored.checkpoint.job == job]
    output = call.output
    for problem in problems:
        output.warn(f"{problem.subject[:12]}: {problem.message}")
    document = list_document(chosen)
    if problems:
        document["problems"] = [plain(problem) for problem in problems]
    output.result(
        document,
        columns(HEADER, map(_row, chosen)) if chosen else "",
        brief="\n".join(stored.id for stored in chosen),
    )
    return Problems.exit_code if problems else 0


def _row(stored: StoredCheckpoint) -> tuple[str, ...]:
    checkpoint = stored.checkpoint
    return (
        stored.id[:12],
        checkpoint.job or "-",
        rfc3339(checkpoint.created_ns)[:19] + "Z",
        f"{milliseconds(checkpoint.frozen_ns):.1f} ms",
        human_bytes(checkpoint.image_bytes),
        human_bytes(stored.stored_bytes),
        ", ".join(stored.tags),
    )
