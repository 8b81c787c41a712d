"""Directories that a restore makes because files that it writes were in them, and takes back if it fails.

Rule: the topmost one is noted in the journal before it is made: what was made after it lies in it.
"""

from __future__ import annotations

import os
import shutil

from ckpt.errors import OsRefused
from ckpt.host.operations import JournaledOperation


def topmost_missing(path: str) -> str:
    """The topmost directory above `path` that is missing, "" if none is."""
    top = ""
    directory = os.path.dirname(path)
    while not os.path.lexists(directory):
        top, directory = directory, os.path.dirname(directory)
    return top


class MadeDirectories:
    """The directories that one restore has made."""

    def __init__(self, operation: JournaledOperation) -> None:
        self._operation = operation
        self._tops: list[str] = []

    def note(self, top: str) -> None:
        """Note that this directory, which is missing, will be made with all that will be in it.

        Raises:
            NoSpace: the state directory is full.
        """
        self._operation.note_directory(top)
        self._tops.append(top)

    def make_above(self, path: str, uid: int, gid: int) -> None:
        """Make what is missing above `path`, the topmost of which was noted, and give it to the file's owner.

        Raises:
            OsRefused: one cannot be made.
        """
        missing = []
        directory = os.path.dirname(path)
        while not os.path.lexists(directory):
            missing.append(directory)
            directory = os.path.dirname(directory)
        try:
            for each in reversed(missing):
                os.mkdir(each, mode=0o755)
                os.chown(each, uid, gid)
        except OSError as error:
            raise OsRefused(
                operation="make the directory",
                subject=os.path.dirname(path),
                reason=error.strerror or str(error),
            ) from error

    def undo(self) -> None:
        """Remove them with all that is in them; safe to repeat."""
        for top in self._tops:
            shutil.rmtree(top, ignore_errors=True)
            self._operation.forget_directory(top)
        self._tops.clear()

    def settle(self) -> None:
        """They are to stay. Never fails."""
        self._tops.clear()
