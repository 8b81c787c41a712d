"""`ckpt show`."""

from __future__ import annotations

import click

from ckpt.cli import wiring
from ckpt.cli.call import Call, make_command
from ckpt.cli.documents import show_document
from ckpt.cli.parameters import ref_argument
from ckpt.cli.portrait import portrait


@make_command("show", example="ckpt show web@latest")
@ref_argument
@click.pass_obj
def command(call: Call, ref: str) -> None:
    """Show what is in the checkpoint REF: processes, files, clocks, cgroups, image sets."""
    store = wiring.open_store(call.store)
    stored = store.load(store.resolve(ref))
    call.output.result(show_document(stored), portrait(stored), brief=stored.id)
