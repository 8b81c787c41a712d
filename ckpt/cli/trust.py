"""`ckpt trust`: whose checkpoints this host restores."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final

import click

from ckpt.cli import wiring
from ckpt.cli.call import Call, make_command
from ckpt.cli.lazy import make_group
from ckpt.cli.output import columns, on_one_line
from ckpt.errors import CkptError

if TYPE_CHECKING:
    from ckpt.store.publickey import TrustedKey

COMMANDS: Final = {
    "list": ("ckpt.cli.trust:list_command", "List the keys that this host trusts."),
    "add": ("ckpt.cli.trust:add_command", "Trust a key from now on."),
    "rm": ("ckpt.cli.trust:rm_command", "Trust a key no more."),
    "show": ("ckpt.cli.trust:show_command", "Print this host's own public key."),
}

_KEY_TEXT_BYTES_MAX: Final = 64 * 1024

command = make_group(
    "trust",
    table=COMMANDS,
    example='ckpt trust add "$(ssh root@web1 ckpt trust show)"',
    help="""Say whose checkpoints this host restores.

    Restoring a checkpoint runs its code as root. Every host signs its checkpoints with a key of its own, made on
    first use, and restores what was signed by a key that it trusts; its own is among them.
    """,
)


def fingerprints(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """What the shell may complete: the fingerprints of the trusted keys that begin so."""
    try:
        trusted = wiring.key_ring().trusted()
    except CkptError:
        return []
    return [key.fingerprint for key in trusted if key.fingerprint.startswith(incomplete)]


@make_command("list", example="ckpt trust list")
@click.pass_obj
def list_command(call: Call) -> None:
    """List the keys whose checkpoints this host restores."""
    ring = wiring.key_ring()
    made = ring.made_key()
    own = made.public if made is not None else None
    keys = ring.trusted()
    rows = [
        (key.fingerprint, "this host" if key.public == own else "", on_one_line(key.comment)) for key in keys
    ]
    call.output.result(
        {"keys": [_document(key, own=key.public == own) for key in keys]},
        columns(("FINGERPRINT", "OWN", "COMMENT"), rows),
        brief="\n".join(key.fingerprint for key in keys),
    )


@make_command("add", example='ckpt trust add "$(ssh root@web1 ckpt trust show)" --comment web1')
@click.argument("words", metavar="KEY", nargs=-1, required=True)
@click.option("--comment", metavar="TEXT", default="", help="What the key is called here.")
@click.pass_obj
def add_command(call: Call, words: tuple[str, ...], comment: str) -> None:
    """Restore what the holder of KEY has signed, from now on.

    KEY is what 'ckpt trust show' prints on the other host, or '-' to read it from standard input. Make sure that
    it comes from there: whoever holds it can run programs as root on this host.
    """
    text = sys.stdin.read(_KEY_TEXT_BYTES_MAX) if words == ("-",) else " ".join(words)
    key = wiring.key_ring().add(text, comment)
    call.output.result(
        _document(key),
        f"{key.fingerprint} ({on_one_line(key.comment) or 'no comment'}) is trusted",
        brief="",
    )


@make_command("rm", example="ckpt trust rm 3f1c")
@click.argument("key", metavar="KEY|FINGERPRINT", shell_complete=fingerprints)
@click.pass_obj
def rm_command(call: Call, key: str) -> None:
    """Restore nothing any more that only the holder of this key has signed.

    Name it by its text, or by the beginning of its fingerprint.
    """
    removed = wiring.key_ring().remove(key)
    call.output.result(
        _document(removed),
        f"{removed.fingerprint} ({on_one_line(removed.comment) or 'no comment'}) is trusted no more",
        brief="",
    )


@make_command("show", example="ckpt trust show")
@click.pass_obj
def show_command(call: Call) -> None:
    """Print this host's own public key, as 'ckpt trust add' takes it on another host.

    The key is made if there is none yet.
    """
    key = wiring.key_ring().own_key()
    call.output.result(_document(key), key.text)


def _document(key: TrustedKey, **more: Any) -> dict[str, Any]:
    return {"fingerprint": key.fingerprint, "key": key.key_text, "comment": key.comment, **more}
