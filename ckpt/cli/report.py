"""`ckpt report`."""

from __future__ import annotations

import os

import click

from ckpt.cli import suggestions, wiring
from ckpt.cli.call import Call, make_command
from ckpt.cli.output import on_one_line
from ckpt.errors import OsRefused
from ckpt.flow.report import picture
from ckpt.units import human_bytes


@make_command("report", example="ckpt report web~2 web~1 web -o web.html")
@click.argument("refs", metavar="REF…", nargs=-1, required=True, shell_complete=suggestions.refs)
@click.option(
    "-o",
    "--output",
    "path",
    required=True,
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help="Where the page is written; a file that is there is replaced.",
)
@click.pass_obj
def command(call: Call, refs: tuple[str, ...], path: str) -> None:
    """Draw checkpoints as one page of HTML, which needs no network: processes, memory page by page, files, a timeline.

    The newest is shown whole, and compared with the one before.
    """
    from ckpt.cli.report_page import page  # noqa: PLC0415 - the other commands need not wait for it

    found = picture(refs, wiring.open_store(call.store), wiring.contents_reader())
    content = page(found).encode("utf-8", "replace")
    _write(path, content)
    document = {
        "path": os.path.abspath(path),
        "size_bytes": len(content),
        "checkpoints": [moment.stored.id for moment in found.moments],
    }
    many = f"{len(found.moments)} checkpoint(s)"
    call.output.result(document, f"{on_one_line(path)}: {many}, {human_bytes(len(content))}", brief=path)


def _write(path: str, content: bytes) -> None:
    """Write the file whole or not at all: somebody may be looking at it. What is no regular file is never replaced."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise OsRefused(operation="write", subject=path, reason="not a regular file")
    passing = f"{path}.{os.getpid()}.new"
    try:
        # It has command lines and paths: for its owner alone, as images are.
        with open(passing, "xb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            file.write(content)
        os.replace(passing, path)
    except OSError as error:
        if os.path.exists(passing):
            os.unlink(passing)
        raise OsRefused(operation="write", subject=path, reason=os.strerror(error.errno or 0)) from error
