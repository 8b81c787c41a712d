"""Commands that ask another host: the options that say where and how, and the ckpt there."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import click

from ckpt import VERSION
from ckpt.cli.call import Call, usage
from ckpt.cli.output import on_one_line

if TYPE_CHECKING:
    from ckpt.codec.messages import Hello
    from ckpt.remote.peer import Peer

PROGRAM: Final = "ckpt"
"""What is started on the other host, unless the user names another program."""

_NEEDS_HOST: Final = ("identity", "known_hosts", "remote_ckpt")


def host_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add --host, and the options that say how to come there."""
    return click.option(
        "--host",
        metavar="[USER@]HOST[:PORT]",
        help="Ask this host, over SSH; an alias of ~/.ssh/config will do.",
    )(ssh_options(function))


def ssh_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say how to come to another host."""
    function = click.option(
        "--remote-ckpt",
        "remote_ckpt",
        metavar="PATH",
        envvar="CKPT_REMOTE_CKPT",
        show_envvar=True,
        help="The ckpt on the other host, if it is not in the PATH there.",
    )(function)
    function = click.option(
        "--known-hosts",
        "known_hosts",
        metavar="FILE",
        help="The keys of hosts that are trusted, instead of ~/.ssh/known_hosts and the system's.",
    )(function)
    return click.option(
        "--identity", metavar="FILE", help="The private key to log in with, instead of those in ~/.ssh."
    )(function)


def refuse_without_host(given: dict[str, Any], host: str | None) -> None:
    """Refuse options that say how to come to a host where none is named.

    Raises:
        UsageError: there is one; names it.
    """
    context = click.get_current_context(silent=True)
    for name in _NEEDS_HOST if host is None else ():
        source = context.get_parameter_source(name) if context else None
        if given[name] is not None and source is click.core.ParameterSource.COMMANDLINE:
            raise usage(f"--{name.replace('_', '-')} says how to come to another host, and none is named.")


@contextmanager
def connected(call: Call, host: str, given: dict[str, Any]) -> Iterator[Peer]:
    """The ckpt on the other host, as long as the context lasts.

    Args:
        call: The present call.
        host: As the user wrote it.
        given: The values of ssh_options().

    Raises:
        Usage: the address, or a file that was named, is none.
        RemoteError: there is no way to it, or no ckpt that answers.
    """
    from ckpt.remote.address import parse_address  # noqa: PLC0415
    from ckpt.remote.peer import Peer  # noqa: PLC0415
    from ckpt.remote.ssh import SshConnection  # noqa: PLC0415
    from ckpt.remote.way import SshOptions  # noqa: PLC0415

    options = SshOptions(identity=given["identity"] or "", known_hosts=given["known_hosts"] or "")
    output = call.output
    with SshConnection(parse_address(host), options) as connection:
        peer = Peer(
            connection,
            program=given["remote_ckpt"] or PROGRAM,
            own=own_hello(),
            note=lambda line: output.note(on_one_line(line)),
        )
        try:
            yield peer
        finally:
            peer.close()


def own_hello() -> Hello:
    """Who this ckpt is, for another one."""
    from ckpt.codec.messages import PROTOCOLS, Hello  # noqa: PLC0415

    return Hello(protocols=PROTOCOLS, version=VERSION, host=os.uname().nodename)
