"""`ckpt store init`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import click

from ckpt.cli import wiring
from ckpt.cli.call import Call, make_command, usage
from ckpt.cli.keys import new_secret

KEPT_APART: Final = (
    "Keep a copy of it apart from the store: without it nothing in the store can ever be read."
)
"""What is said of a key file that was made."""


def signatures_option(**attributes: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add --signatures, here and in `ckpt store set`."""
    return click.option(
        "--signatures",
        type=click.Choice(["required", "optional"]),
        help="Whether only what a trusted key has signed is restored from it.",
        **attributes,
    )


@make_command(
    "init", example="ckpt store init --store /srv/checkpoints --encrypt --key-file /root/checkpoints.key"
)
@click.option("--encrypt", is_flag=True, help="Encrypt it with the secret of --key-file or --key-command.")
@signatures_option(default="required", show_default=True)
@click.pass_obj
def command(call: Call, *, encrypt: bool, signatures: str) -> None:
    """Make a store. A plain one, with signatures required, is made on first use anyway.

    With --encrypt, name a secret: a file with --key-file, which is made if it does not exist, or a command that
    prints it with --key-command. Without the secret nothing in the store can ever be read: keep a copy of it
    apart from the store. Whether a store is encrypted cannot be changed later; its secret can.
    """
    named = call.key_file is not None or call.key_command is not None
    if encrypt and not named:
        raise usage("Name the secret: --key-file FILE, which is made if it does not exist, or --key-command.")
    if named and not encrypt:
        raise usage(
            "A key is named: add --encrypt, or leave out --key-file, --key-command and their variables."
        )
    required = signatures == "required"
    made_file = None
    if encrypt:
        with new_secret(call.key_file, call.key_command) as secret:
            store = wiring.init_store(call.store, secret=secret.value, signatures_required=required)
            made_file = secret.made_file
    else:
        store = wiring.init_store(call.store, secret=None, signatures_required=required)
    text = f"{store.place} is {'an encrypted' if encrypt else 'a'} store; signatures are {signatures}"
    if made_file is not None:
        text += f"\nits key is in {made_file}, made now. {KEPT_APART}"
    call.output.result(
        {
            "store": store.place,
            "encrypted": encrypt,
            "signatures_required": required,
            "made_key_file": made_file,
        },
        text,
        brief="",
    )
