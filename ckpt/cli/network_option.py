"""The option --net: the network that a job wishes for."""

from __future__ import annotations

import click

from ckpt.model.network import Network, parse_network


def network(text: str) -> Network:
    """The network that the text wishes for: "bridge=br0,address=10.0.0.5/24".

    Raises:
        BadParameter: it wishes for none that can be.
    """
    try:
        return parse_network(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None
