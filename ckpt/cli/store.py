"""`ckpt store`: the commands about a store as a whole."""

from __future__ import annotations

from typing import Final

from ckpt.cli.lazy import make_group

COMMANDS: Final = {
    "init": ("ckpt.cli.store_init", "Make a store, plain or encrypted."),
    "stats": ("ckpt.cli.store_stats", "Show what the checkpoints of each job take."),
    "set": ("ckpt.cli.store_set", "Change a setting of the store."),
    "rekey": ("ckpt.cli.store_rekey", "Give an encrypted store another key."),
}

command = make_group(
    "store",
    table=COMMANDS,
    example="ckpt store stats",
    help="""Make a store, see what it takes, change its settings and its key.

    The store is the one that --store or $CKPT_STORE names.
    """,
)
