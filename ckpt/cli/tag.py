"""`ckpt tag`."""

from __future__ import annotations

import click

from ckpt.cli import wiring
from ckpt.cli.call import Call, make_command
from ckpt.cli.parameters import ref_argument, tag_name
from ckpt.units import Tag


@make_command("tag", example="ckpt tag web@latest before-upgrade")
@ref_argument
@click.argument("tag", type=tag_name, metavar="TAG")
@click.pass_obj
def command(call: Call, ref: str, tag: Tag) -> None:
    """Give the checkpoint REF the name TAG; it is taken from the checkpoint that had it."""
    store = wiring.open_store(call.store)
    checkpoint = store.resolve(ref)
    store.tag(checkpoint, tag)
    call.output.result({"id": checkpoint, "tag": tag}, f"{checkpoint[:12]} is {tag}", brief="")
