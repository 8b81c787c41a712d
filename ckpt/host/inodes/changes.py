"""The changes that one rung made, in its memory and in the ledger."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ckpt.host.inodes import ledger
from ckpt.host.inodes.ledger import TEMPORARY_PREFIX, Ledger, Line
from ckpt.host.inodes.moved import MovedFile
from ckpt.host.inodes.places import Refused


class Changes:
    """A part of a ledger that can be taken back by itself."""

    def __init__(self, written_to: Ledger) -> None:
        self._ledger = written_to
        self._lines: list[Line] = []

    def note(self, line: Line) -> None:
        """Note a change that is about to be made.

        Raises:
            OSError: it cannot be noted.
        """
        self._ledger.note(line)
        self._lines.append(line)

    @contextmanager
    def all_or_none(self) -> Iterator[None]:
        """Take back what was noted inside, if it is left by an exception.

        Raises:
            OsRefused: it could not be taken back; undo() tries it again.
        """
        before = len(self._lines)
        try:
            yield
        except BaseException:
            ledger.take_back(self._lines[before:])
            del self._lines[before:]
            raise

    def undo(self) -> None:
        """Take all back; safe to repeat.

        Raises:
            OsRefused: something could not be taken back; all else was.
        """
        ledger.take_back(self._lines)
        self._lines.clear()

    def settle(self) -> None:
        """Remove what only undo() needed. Never fails; safe to repeat."""
        ledger.settle(self._lines)
        self._lines.clear()


def attempt(keep: Callable[[MovedFile], None], file: MovedFile) -> str | None:
    """Call `keep` for a file; None if it could, else the reason why not."""
    try:
        keep(file)
    except Refused as refused:
        return str(refused)
    except OSError as error:
        return error.strerror or str(error)
    return None


def temporary_name() -> str:
    """A name for the time of a restore that nobody else has."""
    return f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}"
