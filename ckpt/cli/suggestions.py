"""What the shell may complete: names of jobs and checkpoints.

Rule: a suggestion that cannot be made is no error; the shell shows none.
"""

from __future__ import annotations

import os

import click

from ckpt.errors import CkptError


def jobs(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """The jobs of this host whose names begin so."""
    from ckpt.cli import wiring  # noqa: PLC0415 - wiring imports the adapters' packages

    try:
        names = wiring.jobs().names()
    except (CkptError, OSError):
        return []
    return [name for name in names if name.startswith(incomplete)]


def refs(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """Tags, jobs and ids that begin so."""
    from ckpt.cli import wiring  # noqa: PLC0415
    from ckpt.cli.call import DEFAULT_STORE  # noqa: PLC0415

    place = context.find_root().params.get("store") or os.environ.get("CKPT_STORE") or DEFAULT_STORE
    try:
        checkpoints = wiring.open_store(place, create=False).list(on_problem=lambda _problem: None)
    except (CkptError, OSError):
        return []
    names = {str(tag) for stored in checkpoints for tag in stored.tags}
    names |= {stored.checkpoint.job for stored in checkpoints if stored.checkpoint.job}
    names |= {stored.id[:12] for stored in checkpoints}
    return sorted(name for name in names if name.startswith(incomplete))
