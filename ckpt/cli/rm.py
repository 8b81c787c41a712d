"""`ckpt rm`."""

from __future__ import annotations

import click

from ckpt.cli import suggestions, wiring
from ckpt.cli.call import Call, make_command
from ckpt.cli.documents import removal_document
from ckpt.cli.progress import telling
from ckpt.units import human_bytes


@make_command("rm", example="ckpt rm web~1 web~2")
@click.argument("refs", metavar="REF...", nargs=-1, required=True, shell_complete=suggestions.refs)
@click.pass_obj
def command(call: Call, refs: tuple[str, ...]) -> None:
    """Remove the checkpoints REF..., tagged ones too, and free the space that nothing else needs.

    If one of them is not there, none is removed.
    """
    output = call.output
    with telling(output) as announce:
        store = wiring.open_store(call.store)
        store.progress = announce
        chosen = tuple(dict.fromkeys(store.resolve(ref) for ref in refs))
        announce("freeing space")
        report = store.remove(chosen)
        wiring.release_pins(chosen, output)
    output.result(
        removal_document(chosen, report),
        f"removed {', '.join(each[:12] for each in chosen)}; freed {human_bytes(report.freed_bytes)}",
        brief="",
    )
