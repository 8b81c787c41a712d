"""Files that a migration sends: the names of their contents.

Rule: a checkpoint that travels is filed nowhere. In it, the name of a saved file's content is the number under which its
blocks were sent, and the root is that of its blocks (ckpt.host.shipping.blocks).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from ckpt.model.checkpoint import SavedFile

SHIPPED_MAX: Final = 1 << 18
"""How many contents one migration sends at most."""

_NAME: Final = re.compile(r"shipped-(0|[1-9][0-9]{0,5})", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShippedDirectory:
    """A directory that is made where it is missing; `mode` has no type bits."""

    path: str
    mode: int
    uid: int
    gid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Shipment:
    """What was sent, as it is at the freeze.

    `directories` are those of which every file was sent. `absent` are paths at which no file is, and none may be
    found: a journal that is left there would roll its database back. `made` are the directories that must be there, each
    after those that it is in. `warnings` are sentences for the user.
    """

    files: tuple[SavedFile, ...]
    directories: tuple[str, ...]
    absent: tuple[str, ...]
    made: tuple[ShippedDirectory, ...]
    warnings: tuple[str, ...]


def content_name(number: int) -> str:
    """The name of the content that was sent under this number."""
    return f"shipped-{number}"


def number_in(name: str) -> int | None:
    """The number in the name of a content; None if it is no such name."""
    match = _NAME.fullmatch(name)
    number = int(match[1]) if match else SHIPPED_MAX
    return number if number < SHIPPED_MAX else None
