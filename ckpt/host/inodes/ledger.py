"""What was done to files for one restore, so that it can be taken back: by this process, or by another one later.

A ledger is a file of one JSON array a line, appended to before each change. It lies in the operation's
directory and is named by one step of its journal.

Rules:
- Taking back goes from the last line to the first. Each line tells by the identities that it names whether its
  change was made, so that taking back is repeatable, and a change that was noted and not made is no problem.
- Lines are appended without a sync, but for contents that are about to be overwritten or cut: after a power cut an
  unwritten line of any other kind leaves a second name of a file, and no harm.
- A line that was cut off was noted before a change that was never made.
- Only the standard library and small modules are imported: the guardian holds this module in its memory.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import stat
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from ckpt.errors import OsRefused
from ckpt.host.inodes import calls, copying
from ckpt.host.inodes.goal import restore_goal
from ckpt.host.inodes.moved import identity_of
from ckpt.host.inodes.places import Refused, opened_place

LEDGER_BYTES_MAX: Final = 256 << 20
TEMPORARY_PREFIX: Final = ".ckpt-"
"""How the names begin that are made beside a file for the time of a restore."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Swapped:
    """The name `path` changed places with `other` in its directory; the file that it led to is `device`, `inode`."""

    path: str
    other: str
    device: int
    inode: int

    def take_back(self) -> None:
        """Let the name lead to the former file again, and drop the other one."""
        with opened_place(self.path) as place:
            other = os.stat(self.other, dir_fd=place.directory, follow_symlinks=False)
            if identity_of(other) == (self.device, self.inode):
                if not place.exists():
                    calls.rename_new(place.directory, self.other, place.name)
                    return
                calls.exchange(place.directory, self.other, place.name)
            _remove(self.other, place.directory)

    def settle(self) -> None:
        """Drop the name of the former file."""
        with opened_place(self.path) as place:
            _remove(self.other, place.directory)


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """A file that was not there before was made at `path`."""

    path: str
    device: int
    inode: int

    def take_back(self) -> None:
        """Remove it, if it is still the one."""
        with opened_place(self.path) as place:
            if identity_of(place.status()) == (self.device, self.inode):
                os.unlink(place.name, dir_fd=place.directory)

    def settle(self) -> None:
        """It stays."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Overwritten:
    """The content of the file at `path` was replaced; what it was is in the file `kept` of the same directory.

    `content`: whether `kept` has the former content, or only the former owner, mode, times and attributes.
    """

    path: str
    kept: str
    device: int
    inode: int
    content: bool

    @property
    def has_content(self) -> bool:
        """Whether content is about to be lost."""
        return self.content

    def take_back(self) -> None:
        """Write the former content back, and drop the copy."""
        with opened_place(self.path) as place:
            kept = dataclasses.replace(place, name=self.kept)
            kept.status()  # it gets its name when it is complete: without it nothing has been overwritten
            if not place.exists() or identity_of(place.status()) != (self.device, self.inode):
                raise Refused("another file is there now")
            with kept.opened(os.O_RDONLY) as source, place.opened(os.O_RDWR) as target:
                if self.content:
                    copying.copy_content(source, target)
                copying.copy_attributes(source, target)
                os.fsync(target)
            os.unlink(self.kept, dir_fd=place.directory)

    def settle(self) -> None:
        """Drop the copy of the former content."""
        with opened_place(self.path) as place:
            os.unlink(self.kept, dir_fd=place.directory)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shortened:
    """The file at `path` was cut to `size_bytes`; what came after is in the file `kept` of the same directory."""

    path: str
    kept: str
    device: int
    inode: int
    size_bytes: int

    @property
    def has_content(self) -> bool:
        """Whether content is about to be lost."""
        return True

    def take_back(self) -> None:
        """Write again what came after, and drop the copy of it."""
        with opened_place(self.path) as place:
            kept = dataclasses.replace(place, name=self.kept)
            kept.status()  # it gets its name when it is complete: without it nothing has been cut
            if not place.exists() or identity_of(place.status()) != (self.device, self.inode):
                raise Refused("another file is there now")
            with kept.opened(os.O_RDONLY) as source, place.opened(os.O_RDWR) as target:
                if os.fstat(target).st_size < self.size_bytes:
                    raise Refused("it was cut shorter since")
                os.ftruncate(target, self.size_bytes)
                copying.copy_to(source, 0, target, self.size_bytes)
                copying.copy_attributes(source, target)
                os.fsync(target)
            os.unlink(self.kept, dir_fd=place.directory)

    def settle(self) -> None:
        """Drop the copy of what came after."""
        with opened_place(self.path) as place:
            os.unlink(self.kept, dir_fd=place.directory)


@dataclass(frozen=True, slots=True, kw_only=True)
class GoalChanged:
    """The inode goal of an ext4 file system, which is the file `path` in /sys, was changed; it was `former`."""

    path: str
    former: int

    def take_back(self) -> None:
        """Write the former goal."""
        restore_goal(self.path, self.former)

    def settle(self) -> None:
        """Write the former goal: whatever became of the files, it is nobody's to keep."""
        self.take_back()


Line = Swapped | Made | Overwritten | Shortened | GoalChanged
_KINDS: Final[dict[str, type[Line]]] = {
    kind.__name__: kind for kind in (Swapped, Made, Overwritten, Shortened, GoalChanged)
}


class Ledger:
    """The ledger of one restore, written by one process."""

    def __init__(self, path: str) -> None:
        """Keep it in the file `path`, which is made with the first line."""
        self._path = path

    @property
    def path(self) -> str:
        """Where it is."""
        return self._path

    def note(self, line: Line) -> None:
        """Note a change that is about to be made.

        Raises:
            OSError: it cannot be written: then the change must not be made.
        """
        text = json.dumps([type(line).__name__, dataclasses.asdict(line)]) + "\n"
        fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            raw = text.encode()
            if os.write(fd, raw) != len(raw):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self._path)
            if isinstance(line, Overwritten | Shortened):
                os.fsync(fd)
        finally:
            os.close(fd)


def read_ledger(path: str) -> list[Line]:
    """The lines of a ledger in their order; none if it is not there."""
    try:
        with open(path, "rb") as stream:
            raw = stream.read(LEDGER_BYTES_MAX)
    except FileNotFoundError:
        return []
    lines = []
    for text in raw.split(b"\n")[:-1]:
        with suppress(ValueError, LookupError, TypeError):
            kind, fields = json.loads(text)
            lines.append(_line(kind, fields))
    return lines


def take_back(lines: Iterable[Line]) -> None:
    """Take changes back, the last one first; safe to repeat.

    Raises:
        OsRefused: something could not be taken back; all else was.
    """
    failed: OsRefused | None = None
    for line in reversed(list(lines)):
        try:
            line.take_back()
        except FileNotFoundError:
            pass  # it was never made, or has been taken back
        except (OSError, Refused) as error:
            failed = _not_taken_back(line, error)
    if failed is not None:
        raise failed


def settle(lines: Iterable[Line]) -> None:
    """Remove what only taking back would need. Never fails: what stays is a second name of an old file."""
    for line in lines:
        with suppress(OSError, Refused):
            line.settle()


def _remove(name: str, directory: int) -> None:
    if stat.S_ISDIR(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode):
        os.rmdir(name, dir_fd=directory)
    else:
        os.unlink(name, dir_fd=directory)


def _line(kind: str, fields: dict[str, Any]) -> Line:
    line = _KINDS[kind](**fields)
    for name in ("other", "kept"):
        temporary = getattr(line, name, TEMPORARY_PREFIX)
        if not temporary.startswith(TEMPORARY_PREFIX) or "/" in temporary:
            raise ValueError(name)
    return line


def _not_taken_back(line: Line, error: OSError | Refused) -> OsRefused:
    reason = (error.strerror if isinstance(error, OSError) else "") or str(error)
    kept = getattr(line, "other", "") or getattr(line, "kept", "")
    where = f"What was there before is {kept} in the same directory." if kept else ""
    return OsRefused(operation="take back what was done to", subject=line.path, reason=reason, remedy=where)
