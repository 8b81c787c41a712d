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
from ckpt.cli.output import on_one_line
from ckpt.cli.parameters import ref_argument
from ckpt.cli.progress import telling
from ckpt.errors import CkptError
from ckpt.units import human_bytes

STANDARD = "-"

THREADS_MAX = 20
"""How many threads are named."""


@make_command("export", example="ckpt export web@latest web.ckpt")
@ref_argument
@click.argument("file", metavar="FILE", type=click.Path(allow_dash=True))
@click.option(
    "--format",
    "form",
    type=click.Choice(["tar", "criu", "podman", "core"]),
    default="tar",
    show_default=True,
    help="tar: all of it, for 'ckpt import'. criu: a directory for 'criu restore'. podman: for checkpointctl. "
    "core: the memory and threads of one process, for gdb.",
)
@click.option(
    "--pid",
    type=click.IntRange(min=1),
    metavar="N",
    help="With --format core: which process, as the host called it.",
)
@click.pass_obj
def command(call: Call, ref: str, file: str, form: str, pid: int | None) -> int:
    """Write the checkpoint REF to FILE, for another store or another tool; "-" is the standard output.

    A file that is there is replaced when the new one is whole. With --format criu, FILE is a new or empty
    directory, and what is told at the end are the commands that restore from it.
    """
    if form == "core":
        if file == STANDARD:
            raise usage("A core file has holes: name a file instead of '-'.")
        return _export_core(call, ref, file, pid)
    if pid is not None:
        raise usage("--pid needs --format core.")
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


def _export_core(call: Call, ref: str, file: str, pid: int | None) -> int:
    from ckpt.cli.core_files import export_core  # noqa: PLC0415 - with it comes all that reads images

    output = call.output
    store = wiring.open_store(call.store, create=False)
    checkpoint = store.resolve(ref)
    with telling(output) as announce:
        announce("writing the core file")
        store.progress = announce
        core = export_core(store, checkpoint, file, pid)
    taken = os.stat(file).st_blocks * 512
    document = {
        "id": checkpoint,
        "format": "core",
        "file": file,
        "pid": core.pid,
        "threads": [{"tid": tid, "name": name} for tid, name in core.threads],
        "core_bytes": core.size_bytes,
        "disk_bytes": taken,
    }
    named = ", ".join(f"{tid} {on_one_line(name)}" for tid, name in core.threads[:THREADS_MAX])
    more = len(core.threads) - THREADS_MAX
    text = (
        f"process {core.pid} of {checkpoint[:12]} is now in {file}\n"
        f"  {human_bytes(core.size_bytes)}, on disk {human_bytes(taken)}\n"
        f"  threads: {named}{f' and {more} more' if more > 0 else ''}\n"
        f"gdb PROGRAM {shlex.quote(file)} opens it"
    )
    output.result(document, text, brief="")
    return 0


def _export(call: Call, ref: str, file: str, form: str) -> int:
    from ckpt.cli import archives  # noqa: PLC0415 - with it comes all that knows formats

    output = call.output
    store = wiring.open_store(call.store, create=False)
    checkpoint = store.resolve(ref)
    with telling(output) as announce:
        announce("writing the archive" if form != "criu" else "writing the images")
        store.progress = announce
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
