"""The options of a restore that stand wherever something is restored: here, or on another host."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from ckpt.model.clocks import TimePolicy
from ckpt.model.inodes import InodePolicy

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def time_option(text: str) -> Decorator:
    """Add --time, with this help."""
    return click.option(
        "--time",
        type=click.Choice([policy.value for policy in TimePolicy]),
        default=TimePolicy.SUSPEND.value,
        show_default=True,
        help=text,
    )


def inodes_option(text: str) -> Decorator:
    """Add --inodes, with this help."""
    return click.option(
        "--inodes",
        type=click.Choice([policy.value for policy in InodePolicy]),
        default=InodePolicy.KEEP.value,
        show_default=True,
        help=text,
    )


def pids_option(text: str) -> Decorator:
    """Add --pids, with this help."""
    return click.option(
        "--pids", type=click.Choice(["same", "new"]), default="same", show_default=True, help=text
    )
