"""`ckpt store rekey`."""

from __future__ import annotations

import os

import click

from ckpt.cli import wiring
from ckpt.cli.call import Call, make_command, usage
from ckpt.cli.keys import new_secret
from ckpt.cli.store_init import KEPT_APART


@make_command("rekey", example="ckpt store rekey --key-file /root/old.key --new-key-file /root/new.key")
@click.option(
    "--new-key-file", metavar="PATH", help="The file with the new secret; made if it does not exist."
)
@click.option(
    "--new-key-command", metavar="COMMAND", help="A command for the shell that prints the new secret."
)
@click.pass_obj
def command(call: Call, new_key_file: str | None, new_key_command: str | None) -> None:
    """Give an encrypted store a new secret; from then on the old one opens it no more.

    The secret protects the key that everything is encrypted with; that key stays, so nothing is written anew
    and the size of the store does not matter. Who has read both the old secret and the store's config before
    still knows that key: after a theft, make a new store and push the checkpoints there.
    """
    if (new_key_file is None) == (new_key_command is None):
        raise usage("Give the new secret once: --new-key-file PATH or --new-key-command COMMAND.")
    if new_key_file and call.key_file and os.path.realpath(new_key_file) == os.path.realpath(call.key_file):
        raise usage("The new key file is the old one: name another, which is made if it does not exist.")
    store = wiring.open_store(call.store, create=False)
    with new_secret(new_key_file, new_key_command) as secret:
        store.rekey(secret.value)
    text = f"{store.place} has a new key; the old one opens it no more"
    if secret.made_file is not None:
        text += f"\nit is in {secret.made_file}, made now. {KEPT_APART}"
    call.output.result({"store": store.place, "made_key_file": secret.made_file}, text, brief="")
