"""`ckpt agent`: the far side of a command that asks another host; started over SSH, and not for people.

Rule: standard output is for messages alone: whatever else is printed goes to standard error.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Final

import click

from ckpt.cli import wiring, wiring_moves
from ckpt.cli.call import Call, make_command, usage
from ckpt.cli.hosts import own_hello

if TYPE_CHECKING:
    from ckpt.codec.messages import Facts
    from ckpt.model.findings import Finding
    from ckpt.model.needs import Needs

_INPUT: Final = 0
_OUTPUT: Final = 1
_ERRORS: Final = 2


@make_command("agent", example="ckpt agent <request >answer")
@click.option(
    "--pages", metavar="ID", hidden=True, help="Bring the pages that follow the workload of this migration."
)
@click.pass_obj
def command(call: Call, pages: str | None) -> int:
    """Answer another ckpt on standard input and output. It is started over SSH, and not for people.

    It says what speaks against a restore on this host, and what this host can do; and it takes in what is migrated.
    """
    from ckpt.remote.inflow import PipeInflow  # noqa: PLC0415
    from ckpt.remote.serving import ASKING, Answers, serve  # noqa: PLC0415

    if os.isatty(_INPUT):
        raise usage("'ckpt agent' talks to another ckpt, not to people: use 'ckpt check --host HOST'.")
    out = _take_output()
    if pages is not None:
        wiring.require_root("ckpt agent")
        return 1 if wiring_moves.keep_pages(pages, _INPUT, out) else 0
    reception = wiring_moves.reception(call.store) if os.geteuid() == 0 else None
    try:
        serve(
            PipeInflow(_INPUT, ASKING),
            lambda content: _write_all(out, content),
            own_hello(),
            Answers(
                facts=lambda: _facts(call.store),
                judge=lambda needs: _judge(needs, call.store),
                receive=reception,
                compressor=wiring_moves.wire_compressor(),
                new_cipher=wiring_moves.wire_cipher,
                ssh_connection=os.environ.get("SSH_CONNECTION", ""),
            ),
        )
    finally:
        if reception is not None:
            reception.close()
    return 0


def _take_output() -> int:
    """Keep standard output for messages; what anybody prints there from now on goes to standard error."""
    sys.stdout.flush()
    out = os.dup(_OUTPUT)
    os.dup2(_ERRORS, _OUTPUT)
    return out


def _write_all(fd: int, content: bytes | memoryview) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(fd, rest) :]


def _judge(needs: Needs, store: str) -> tuple[Finding, ...]:
    wiring.require_root("ckpt agent")
    return (*wiring.judge_signers(needs.signers), *wiring.judge(store).judge(needs))


def _facts(store: str) -> Facts:
    from ckpt.cli.doctor import examine  # noqa: PLC0415
    from ckpt.codec.messages import Facts  # noqa: PLC0415
    from ckpt.host.inspection.inspector import HostInspector  # noqa: PLC0415

    return Facts(host=HostInspector(wiring.state()).host_facts(), checks=examine(store))
