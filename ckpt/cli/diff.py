"""`ckpt diff`."""

from __future__ import annotations

import click

from ckpt.cli import suggestions, wiring
from ckpt.cli.call import Call, make_command
from ckpt.cli.changes_text import changes_document, changes_text
from ckpt.flow.diff import diff


@make_command("diff", example="ckpt diff web~1 web")
@click.argument("before", metavar="REF", shell_complete=suggestions.refs)
@click.argument("after", metavar="REF", shell_complete=suggestions.refs)
@click.pass_obj
def command(call: Call, before: str, after: str) -> None:
    """Show what changed from the first checkpoint to the second: tasks, descriptors, memory page by page, files, limits."""
    store = wiring.open_store(call.store)
    was, now = (store.load(store.resolve(ref)) for ref in (before, after))
    changes = diff(store, wiring.contents_reader(), was, now)
    for warning in changes.warnings:
        call.output.warn(warning)
    call.output.result(changes_document(changes), changes_text(changes))
