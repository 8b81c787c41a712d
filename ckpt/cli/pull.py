"""`ckpt pull`."""

from __future__ import annotations

import click

from ckpt.cli import wiring
from ckpt.cli.call import Call, make_command
from ckpt.cli.progress import telling
from ckpt.cli.transfers import (
    open_other_store,
    other_store_parameters,
    tags_option,
    transfer_document,
    transfer_text,
)
from ckpt.units import Tag


@make_command("pull", example="ckpt pull web@latest /mnt/backup/store --tag from-backup")
# No completion of REF: it names a checkpoint of the other store.
@click.argument("ref", metavar="REF")
@other_store_parameters
@tags_option("Tag it here; may be repeated.")
@click.pass_obj
def command(call: Call, /, ref: str, place: str, *, tags: tuple[Tag, ...], **keys: str | None) -> None:
    """Copy the checkpoint REF of another STORE into this one.

    It must be signed by a key that this host trusts, whatever the other store asks for: to restore a checkpoint
    is to run its code. Else nothing is written. Only what this store lacks is read. Tags that it has there are
    not taken along.
    """
    output = call.output
    with telling(output) as announce:
        source = open_other_store(call, place, create=False, **keys)
        checkpoint = source.resolve(ref)
        # Before this store is even made.
        source.check_signed(checkpoint)
        target = wiring.open_store(call.store, either=True)
        report = wiring.transfer(source, target, checkpoint, announce)
        for tag in dict.fromkeys(tags):
            target.tag(report.id, tag)
    output.result(transfer_document(report), transfer_text(report, target.place), brief=report.id)
