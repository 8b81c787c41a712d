"""`ckpt verify`."""

from __future__ import annotations

import click

from ckpt.cli import suggestions, wiring
from ckpt.cli.call import Call, make_command
from ckpt.cli.documents import verify_document
from ckpt.cli.output import columns
from ckpt.cli.progress import telling
from ckpt.errors import Problems
from ckpt.model.reports import VerifyReport
from ckpt.units import human_bytes


@make_command("verify", example="ckpt verify web@latest")
@click.argument("ref", metavar="[REF]", required=False, shell_complete=suggestions.refs)
@click.pass_obj
def command(call: Call, ref: str | None) -> int:
    """Read the checkpoint REF, or everything in the store, and check every byte.

    The exit code is 3 if something is wrong.
    """
    output = call.output
    with telling(output) as announce:
        store = wiring.open_store(call.store)
        store.progress = announce
        wanted = None if ref is None else (store.resolve(ref),)
        announce("reading and checking")
        report = store.verify(wanted)
    output.result(verify_document(report), _text(report), brief="")
    return Problems.exit_code if report.problems else 0


def _text(report: VerifyReport) -> str:
    read = f"{report.checked_chunks} chunks, {human_bytes(report.checked_bytes)} read"
    if not report.problems:
        return f"all well: {read}"
    rows = [(problem.slug, problem.subject, problem.message) for problem in report.problems]
    return f"{columns(('PROBLEM', 'SUBJECT', 'WHAT'), rows)}\n{len(rows)} problem(s); {read}"
