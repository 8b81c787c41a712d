"""The options of a dump that say what may be dumped: 'dump' acts by them, and 'check' judges by them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import click

from ckpt.cli.call import usage
from ckpt.cli.parameters import size
from ckpt.host.criu.request import GHOST_LIMIT_MAX
from ckpt.model.checkpoint import ClosingOptions, DumpOptions
from ckpt.units import ByteCount


def dump_parameters(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options; dump_options() makes a value of them."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def dump_options(given: Mapping[str, Any]) -> DumpOptions:
    """What the user gave of them.

    Raises:
        UsageError: connections cannot be both kept and closed.
    """
    if given["tcp_established"] and given["tcp_close"]:
        raise usage("--tcp-established keeps open TCP connections, --tcp-close closes them: choose one.")
    kind = ClosingOptions if given["tcp_close"] else DumpOptions
    return kind(
        tcp_established=given["tcp_established"],
        shell_job=given["shell_job"],
        external_unix=given["external_unix"],
        ghost_limit_bytes=given["ghost_limit"],
    )


def _ghost_limit(text: str) -> ByteCount:
    limit = size(text)
    if limit > GHOST_LIMIT_MAX:
        raise click.BadParameter(f"{text!r} is more than {GHOST_LIMIT_MAX} bytes, which is CRIU's limit.")
    return limit


_OPTIONS = (
    click.option("--tcp-established", is_flag=True, help="Keep open TCP connections."),
    click.option(
        "--tcp-close",
        is_flag=True,
        help="Bring open TCP connections back closed: the program finds that its peer has ended them.",
    ),
    click.option(
        "--shell-job", is_flag=True, help="Allow a session, or a terminal, that begins outside the tree."
    ),
    click.option("--external-unix", is_flag=True, help="Allow datagram unix sockets with a peer outside."),
    click.option(
        "--ghost-limit",
        type=_ghost_limit,
        default="64M",
        show_default=True,
        metavar="SIZE",
        help="Save deleted files that are still open up to this size each.",
    ),
)
