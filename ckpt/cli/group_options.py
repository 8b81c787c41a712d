"""The option --group of dump and restore, and what does not go with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import click

from ckpt.cli.call import usage
from ckpt.cli.parameters import group_name

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def group_option(text: str) -> Decorator:
    """Add --group, with this help."""
    return click.option("--group", type=group_name, metavar="G", help=text)


def refuse_beside_group(given: Mapping[str, Any], reasons: Mapping[str, str]) -> None:
    """Return if none of these parameters was given; `reasons` has the option, and why it is refused, for each.

    Raises:
        UsageError: one was.
    """
    for parameter, reason in reasons.items():
        if given[parameter]:
            raise usage(f"{reason} does not go with --group.")
