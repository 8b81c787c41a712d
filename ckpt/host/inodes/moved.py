"""A file that is as it was but for its identity, and the port of whatever can give that back."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from ckpt.model.inodes import Identity, InodeMethod, InodeRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class MovedFile:
    """A recorded file, and what lstat(2) says of the one that is at its path now."""

    path: str
    record: InodeRecord
    found: os.stat_result

    @property
    def wanted(self) -> Identity:
        """The identity that the workload must go on seeing."""
        return self.record.identity


class Rung(Protocol):
    """One way of giving files their identity back. Its calls come one after the other."""

    @property
    def method(self) -> InodeMethod:
        """What an outcome of it is called."""

    def prepare(self, files: Iterable[MovedFile]) -> None:
        """Tell once, before the first try, which files are going to be tried."""

    def try_keep(self, file: MovedFile) -> str | None:
        """Let the path lead to a file with the wanted identity, and with what the one there holds now.

        Returns:
            None when that is done and was compared; else why not, in words: then nothing was changed.
        """

    def undo(self) -> None:
        """Leave everything as it was found; safe to repeat.

        Raises:
            OsRefused: something could not be taken back; all else was.
        """

    def settle(self) -> None:
        """The restore succeeded: remove what only undo() needed. Never fails; safe to repeat."""


def identity_of(status: os.stat_result) -> tuple[int, int]:
    """The device and the inode number."""
    return (status.st_dev, status.st_ino)


def matches(status: os.stat_result, wanted: Identity) -> bool:
    """Whether this is a file with the wanted identity."""
    return identity_of(status) == (wanted.device, wanted.inode)
