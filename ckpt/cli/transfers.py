"""What `ckpt push` and `ckpt pull` have in common: their parameters, the other store, and what they answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from ckpt.cli import wiring
from ckpt.cli.call import Call, usage
from ckpt.cli.parameters import tag_name
from ckpt.model.reports import TransferReport
from ckpt.units import human_bytes

if TYPE_CHECKING:
    from ckpt.store.store import Store


def open_other_store(
    call: Call, place: str, *, create: bool, other_key_file: str | None, other_key_command: str | None
) -> Store:
    """The store at `place`, opened with a secret of its own if one is named, else with that of the call.

    Raises:
        UsageError: two secrets are named.
        StoreError: as wiring.open_store() says.
    """
    if other_key_file is None and other_key_command is None:
        return wiring.open_store(place, create=create, either=True)
    if other_key_file is not None and other_key_command is not None:
        raise usage("--other-key-file and --other-key-command exclude each other.")
    context = click.get_current_context()
    theirs = replace(call, store=place, key_file=other_key_file, key_command=other_key_command)
    # The secret is what the present call names; for this moment that is another one.
    with click.Context(context.command, parent=context, obj=theirs):
        return wiring.open_store(place, create=create)


def other_store_parameters(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the argument STORE, and the options for its secret."""
    function = click.option(
        "--other-key-command", metavar="COMMAND", help="A command for the shell that prints that secret."
    )(function)
    function = click.option(
        "--other-key-file",
        metavar="PATH",
        help="The file with the secret of STORE, if it has one of its own.",
    )(function)
    # What cannot be a store is for the store to say, in its own words.
    path = click.Path(readable=False)
    return click.argument("place", metavar="STORE", type=path)(function)


def tags_option(meaning: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add --tag, which may be repeated."""
    return click.option("--tag", "tags", type=tag_name, multiple=True, metavar="T", help=meaning)


def transfer_document(report: TransferReport) -> dict[str, Any]:
    """What both answer in JSON."""
    return {
        "id": report.id,
        "image_bytes": report.image_bytes,
        "new_bytes": report.new_bytes,
        "stored_bytes": report.stored_bytes,
        "was_there": report.was_there,
    }


def transfer_text(report: TransferReport, place: str) -> str:
    """The same for people."""
    if report.was_there:
        return f"{report.id[:12]} is in {place} already"
    return (
        f"{report.id[:12]} is now in {place}\n  images {human_bytes(report.image_bytes)}, "
        f"new {human_bytes(report.new_bytes)}, stored {human_bytes(report.stored_bytes)}"
    )
