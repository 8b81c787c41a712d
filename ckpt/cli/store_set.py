"""`ckpt store set`."""

from __future__ import annotations

import click

from ckpt.cli import wiring
from ckpt.cli.call import Call, make_command
from ckpt.cli.store_init import signatures_option


@make_command("set", example="ckpt store set --signatures required")
@signatures_option(required=True)
@click.pass_obj
def command(call: Call, signatures: str) -> None:
    """Change a setting of the store.

    With --signatures required, a checkpoint that no trusted key has signed is not restored from it; 'ckpt sign'
    signs one. With optional, everything in it is: for a store that nobody else can write to. What is pulled,
    imported or migrated must be signed in any case.
    """
    store = wiring.open_store(call.store, create=False)
    store.set_signatures_required(signatures == "required")
    call.output.result(
        {"store": store.place, "signatures_required": signatures == "required"},
        f"{store.place}: signatures are {signatures}",
        brief="",
    )
