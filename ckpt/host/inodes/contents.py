"""Write a saved content into the file that is there, so that it keeps its identity; or make the file anew.

Rules:
- What the file holds now is kept beside it until the restore has succeeded: shared where the file system can. Of one
  that has only grown no more is kept than what came new.
- That the directory can be written to, and has the space, is known before anything is changed.
- A content comes from a checkpoint, which may lie: no symbolic link is followed, a file that belongs to
  somebody else by now is refused, and set-uid and set-gid are never given.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass
from typing import Final

from ckpt.errors import NoSpace, OsRefused
from ckpt.host.inodes import calls, copying
from ckpt.host.inodes.attributes import set_attributes
from ckpt.host.inodes.changes import Changes
from ckpt.host.inodes.ledger import Ledger, Made
from ckpt.host.inodes.places import Place, Refused, is_written_elsewhere, opened_place
from ckpt.host.inodes.refilling import keep_former, keep_tail
from ckpt.model.checkpoint import ExtendedAttribute
from ckpt.units import Nanoseconds

_MODE_MASK: Final = 0o1777


@dataclass(frozen=True, slots=True, kw_only=True)
class Attributes:
    """What a saved file has beside its content; `extended` None leaves alone what is there."""

    mode: int
    uid: int
    gid: int
    mtime_ns: Nanoseconds
    extended: tuple[ExtendedAttribute, ...] | None = None


class SavedContents:
    """Writes saved contents into files, and takes that back."""

    def __init__(self, ledger: Ledger) -> None:
        """Note all changes in `ledger`."""
        self._changes = Changes(ledger)

    def write_into(self, path: str, source: int, attributes: Attributes) -> None:
        """Let the file at `path` hold what the open file `source` holds; make it if it is missing.

        Raises:
            NoSpace: its file system has too little space; nothing was changed.
            OsRefused: it cannot be written; nothing was changed.
        """
        try:
            with opened_place(path) as place:
                if place.exists():
                    self._overwrite(place, source, attributes)
                else:
                    self._make(place, source, attributes)
        except Refused as refused:
            raise _not_written(path, str(refused)) from refused
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise _no_space(path, source) from error
            raise _not_written(path, error.strerror or str(error)) from error

    def undo(self) -> None:
        """Take all back; safe to repeat.

        Raises:
            OsRefused: something could not be taken back; all else was.
        """
        self._changes.undo()

    def settle(self) -> None:
        """Remove what only undo() needed. Never fails; safe to repeat."""
        self._changes.settle()

    def _overwrite(self, place: Place, source: int, attributes: Attributes) -> None:
        status = place.status()
        if not stat.S_ISREG(status.st_mode):
            raise Refused("something that is no file is in the way")
        if (status.st_uid, status.st_gid) != (attributes.uid, attributes.gid):
            raise Refused(
                f"it belongs to uid {status.st_uid}, gid {status.st_gid} now, and belonged to "
                f"uid {attributes.uid}, gid {attributes.gid}"
            )
        with place.opened(os.O_RDONLY) as reading:
            if is_written_elsewhere(reading):
                raise Refused("another process has it open for writing")
            if not os.path.samestat(status, os.fstat(reading)):
                raise Refused("another process replaced it meanwhile")
        with place.opened(os.O_RDWR) as target:
            if not os.path.samestat(status, os.fstat(target)):
                raise Refused("another process replaced it meanwhile")
            if copying.is_special(target):
                raise Refused("it is immutable, append-only, encrypted or sealed")
            grown = copying.begins_with(target, source)
            content = not grown and not copying.same_content(source, target)
            with self._changes.all_or_none():
                if grown:
                    size = os.fstat(source).st_size
                    keep_tail(target, size, place, self._changes)
                    os.ftruncate(target, size)
                else:
                    keep_former(source, target, place, self._changes, content=content)
                if content:
                    copying.copy_content(source, target, zeros_are_holes=True)
                _set(target, attributes)
                os.fsync(target)

    def _make(self, place: Place, source: int, attributes: Attributes) -> None:
        with place.unnamed() as target:
            copying.check_space(place.directory, copying.needed_bytes(source))
            copying.copy_content(source, target, zeros_are_holes=True)
            os.fchown(target, attributes.uid, attributes.gid)
            _set(target, attributes)
            os.fsync(target)
            status = os.fstat(target)
            with self._changes.all_or_none():
                self._changes.note(Made(path=place.path, device=status.st_dev, inode=status.st_ino))
                calls.link_at(target, place.directory, place.name)


def _set(target: int, attributes: Attributes) -> None:
    os.fchmod(target, attributes.mode & _MODE_MASK)
    if attributes.extended is not None:
        set_attributes(target, attributes.extended)
    os.utime(target, ns=(attributes.mtime_ns, attributes.mtime_ns))


def _no_space(path: str, source: int) -> NoSpace:
    directory = os.path.dirname(path)
    space = os.statvfs(directory)
    return NoSpace(
        place=directory,
        available_bytes=space.f_bavail * space.f_frsize,
        # What it holds now is kept beside it until the restore has succeeded.
        needed_bytes=2 * copying.needed_bytes(source),
        option="restore with --files newest, which writes no file",
    )


def _not_written(path: str, reason: str) -> OsRefused:
    return OsRefused(
        operation="write the saved content of",
        subject=path,
        reason=reason,
        remedy="Nothing was changed. Mend that, or restore with --files newest.",
    )
