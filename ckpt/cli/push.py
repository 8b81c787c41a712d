"""`ckpt push`."""

from __future__ import annotations

import click

from ckpt.cli import wiring
from ckpt.cli.call import Call, make_command
from ckpt.cli.parameters import ref_argument
from ckpt.cli.progress import telling
from ckpt.cli.transfers import (
    open_other_store,
    other_store_parameters,
    tags_option,
    transfer_document,
    transfer_text,
)
from ckpt.units import Tag


@make_command("push", example="ckpt push web@latest /mnt/backup/store")
@ref_argument
@other_store_parameters
@tags_option("Tag it there; may be repeated.")
@click.pass_obj
def command(call: Call, /, ref: str, place: str, *, tags: tuple[Tag, ...], **keys: str | None) -> None:
    """Copy the checkpoint REF into another STORE, which is made if it is missing.

    Only what the other store lacks is written. The checkpoint keeps its id, its job and its signatures; tags
    that it has here are not taken along.
    """
    output = call.output
    with telling(output) as announce:
        source = wiring.open_store(call.store, create=False, either=True)
        checkpoint = source.resolve(ref)
        target = open_other_store(call, place, create=True, **keys)
        report = wiring.transfer(source, target, checkpoint, announce)
        for tag in dict.fromkeys(tags):
            target.tag(report.id, tag)
    output.result(transfer_document(report), transfer_text(report, target.place), brief=report.id)
