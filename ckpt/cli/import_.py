"""`ckpt import`."""

from __future__ import annotations

import os
import sys

import click

from ckpt.cli.call import Call, make_command, usage
from ckpt.cli.export import STANDARD
from ckpt.cli.parameters import job_name
from ckpt.cli.progress import telling
from ckpt.cli.transfers import tags_option, transfer_document, transfer_text
from ckpt.units import JobName, Tag


@make_command("import", example="ckpt import web.ckpt --tag from-forge")
@click.argument("file", metavar="FILE", type=click.Path(allow_dash=True))
@click.option(
    "--unsigned",
    is_flag=True,
    help="Take what nobody signs whom this host trusts: you vouch for it, and this host's key signs it.",
)
@click.option("--job", type=job_name, metavar="J", help="File images of CRIU under this job's name.")
@tags_option("Tag it; may be repeated.")
@click.pass_obj
def command(call: Call, file: str, *, unsigned: bool, job: JobName | None, tags: tuple[Tag, ...]) -> None:
    """Take the checkpoint in FILE into the store: an archive of 'ckpt export', or a directory of CRIU's images.

    "-" is the standard input. An archive's checkpoint keeps its id, its job and its signatures, and must be
    signed by a key that this host trusts: to restore a checkpoint is to run its code. Images that CRIU made
    have no signature and need --unsigned. What is refused leaves nothing in the store.
    """
    is_directory = file != STANDARD and os.path.isdir(file)
    if job is not None and not is_directory:
        raise usage("--job is for images of CRIU: the job of an archive's checkpoint is part of it.")
    if file == STANDARD and sys.stdin.isatty():
        raise usage("There is no archive in a terminal: name a file, or redirect the input.")
    from ckpt.cli import archives  # noqa: PLC0415 - with it comes all that knows formats

    output = call.output
    with telling(output) as announce:
        if is_directory:
            announce("storing the images")
            report, store = archives.take_images(
                call.store, file, job=job, unsigned=unsigned, progress=announce
            )
        else:
            announce("reading the archive")
            report, store = archives.take_archive(call.store, file, unsigned=unsigned, progress=announce)
        for tag in dict.fromkeys(tags):
            store.tag(report.id, tag)
    output.result(transfer_document(report), transfer_text(report, store.place), brief=report.id)
