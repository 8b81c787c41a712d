"""`ckpt show`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ckpt.cli import contents_document, contents_text, wiring
from ckpt.cli.call import Call, make_command
from ckpt.cli.documents import show_document
from ckpt.cli.parameters import ref_argument
from ckpt.cli.portrait import clocks_portrait, files_portrait, portrait
from ckpt.errors import CkptError
from ckpt.flow.contents import read_contents

if TYPE_CHECKING:
    from ckpt.model.contents import TreeContents
    from ckpt.model.reports import StoredCheckpoint
    from ckpt.store.store import Store


@make_command("show", example="ckpt show web@latest --maps")
@ref_argument
@click.option("--tree", is_flag=True, help="The processes, with their threads.")
@click.option("--maps", is_flag=True, help="The mappings of memory, and what is stored of them.")
@click.option("--files", is_flag=True, help="The descriptors, and the identity of the files.")
@click.option("--sockets", is_flag=True, help="The sockets and pipes.")
@click.option("--clocks", is_flag=True, help="The clocks, timers and timed waits.")
@click.pass_obj
def command(call: Call, /, ref: str, **parts: bool) -> None:
    """Show what is in the checkpoint REF: processes, memory, files, sockets, clocks, cgroups, image sets.

    With options, only those parts, in detail.
    """
    store = wiring.open_store(call.store)
    stored = store.load(store.resolve(ref))
    wanted = [name for name, given in parts.items() if given]
    if wanted:
        _show_parts(call, store, stored, wanted)
        return
    contents = None if call.output.quiet and not call.json else _contents_if_readable(call, store, stored)
    document = show_document(stored) | contents_document.contents_document(contents)
    call.output.result(document, portrait(stored, contents or ()), brief=stored.id)


def _show_parts(call: Call, store: Store, stored: StoredCheckpoint, wanted: list[str]) -> None:
    contents = () if wanted == ["clocks"] else read_contents(store, wiring.contents_reader(), stored)
    document: dict[str, Any] = {"id": stored.id}
    texts: list[str] = []
    for name in wanted:
        part, text = _part(name, stored, contents)
        document |= part
        texts.append(text)
    call.output.result(document, "\n\n".join(filter(None, texts)))


def _part(
    name: str, stored: StoredCheckpoint, contents: tuple[TreeContents, ...]
) -> tuple[dict[str, Any], str]:
    """One part as JSON and as text."""
    match name:
        case "tree":
            return contents_document.tasks_part(contents), contents_text.tree_text(contents)
        case "maps":
            return contents_document.memory_part(contents), contents_text.maps_text(contents)
        case "files":
            document = contents_document.descriptors_part(contents)
            document["inodes"] = show_document(stored)["inodes"]
            texts = (contents_text.files_text(contents), files_portrait(stored.checkpoint))
            return document, "\n\n".join(filter(None, texts))
        case "sockets":
            return contents_document.sockets_part(contents), contents_text.sockets_text(contents)
        case _:
            return contents_document.clocks_part(stored.checkpoint), clocks_portrait(stored.checkpoint)


def _contents_if_readable(
    call: Call, store: Store, stored: StoredCheckpoint
) -> tuple[TreeContents, ...] | None:
    """What is in the image sets; nothing, and a warning, if they cannot be read."""
    try:
        return read_contents(store, wiring.contents_reader(), stored)
    except CkptError as error:
        call.output.warn(f"What is in the images cannot be shown: {error.message}")
        return None
