"""A row of the table of failures, and the remedies that several rows have."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A known failure: `line` is searched for; its named groups fill the `cause` and the `remedy`."""

    line: re.Pattern[str]
    cause: str
    remedy: str


def row(line: str, cause: str, remedy: str) -> Row:
    """The row of this pattern."""
    return Row(line=re.compile(line), cause=cause, remedy=remedy)


NEWER: Final = "Install CRIU 4.2 or newer: scripts/setup puts one beside the system's."
AGAIN: Final = "Fetch or dump the checkpoint again."
SESSION: Final = (
    "Start it with 'ckpt run' or setsid, or redirect its input and output away from the terminal; or dump it with "
    "--shell-job, and restore it in a terminal."
)
REFUSED: Final = "Such a workload can be dumped but not restored: 'ckpt check' finds it before the dump."
