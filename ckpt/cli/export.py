"""`ckpt export`."""

from __future__ import annotations

import os
import shlex
import sys
from contextlib import nullcontext, redirect_stdout
from typing import Any

import click

from ckpt.cli import wiring
from ckpt.cli.call import Call, make_command, usage
from ckpt.cli.failures import tell
from ckpt.cli.main import READER_GONE
from ckpt.cli.parameters import ref_argument
from ckpt.cli.progress import telling
from ckpt.errors import CkptError
from ckpt.units import human_bytes

STANDARD = "-"


@make_command("export", example="ckpt export web@latest web.ckpt")
@ref_argument
@click.argument("file", metavar="FILE", type=click.Path(allow_dash=True))
@click.option(
    "--format",
    "form",
    type=click.Choice(["tar", "criu", "podman"]),
    default="tar",
    show_default=True,
    help="tar: all of it, for 'ckpt import'. criu: a directory for 'criu restore'. podman: for checkpointctl.",
)
@click.pass_obj
def command(call: Call, ref: str, file: str, form: str) -> int:
    """Write the checkpoint REF to FILE, for another store or another tool; "-" is the standard output.

    A file that is there is replaced when the new one is whole. With --format criu, FILE is a new or empty
    directory, and what is told at the end are the commands that restore from it.
    """
    if file != STANDARD:
        return _export(call, ref, file, form)
    if form == "criu":
        raise usage("CRIU's format is a directory: name one instead of '-'.")
    if sys.stdout.isatty():
        raise usage("An archive does not go to a terminal: name a file, or redirect the output.")
    # Standard output belongs to the archive; what else there is to say goes beside it.
    try:
        return _export(call, ref, file, form)
    except BrokenPipeError:
        # click would end this with 1, and Python would try to write what is left.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return READER_GONE
    except CkptError as error:
        with redirect_stdout(sys.stderr):
            return tell(error, json=call.json)


def _export(call: Call, ref: str, file: str, form: str) -> int:
    from ckpt.cli import archives  # noqa: PLC0415 - with it comes all that knows formats

    output = call.output
    store = wiring.open_store(call.store, create=False)
    checkpoint = store.resolve(ref)
    with telling(output) as announce:
        announce("writing the archive" if form != "criu" else "writing the images")
        exported = archives.export(store, checkpoint, file, form)
    for warning in exported.warnings:
        output.warn(warning)
    document: dict[str, Any] = {
        "id": checkpoint,
        "format": form,
        "file": file,
        "image_bytes": exported.image_bytes,
        "archive_bytes": exported.archive_bytes,
        "commands": [list(words) for words in exported.commands],
        "warnings": list(exported.warnings),
    }
    sizes = f"images {human_bytes(exported.image_bytes)}"
    if exported.archive_bytes is not None:
        sizes += f", archive {human_bytes(exported.archive_bytes)}"
    place = "the standard output" if file == STANDARD else file
    lines = [f"{checkpoint[:12]} is now in {place}", f"  {sizes}"]
    if exported.commands:
        lines.append("Without ckpt it is restored by")
        lines += [f"  {shlex.join(words)}" for words in exported.commands]
    with redirect_stdout(sys.stderr) if file == STANDARD else nullcontext():
        output.result(document, "\n".join(lines), brief="")
    return 0
