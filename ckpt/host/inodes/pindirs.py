"""The directories that pins lie in: one on each file system, because a hard link reaches no further.

Rules:
- On the state directory's file system it is pins/files in there; elsewhere it is .ckpt-pins-XXXXXXXX at the top
  of the mount, named after the state directory, so that two of them do not sweep each other's pins.
- It belongs to us and nobody else may enter it: else it is not used.
- A pin is named by its inode number: while the pin is there, no other file can have the number.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

from ckpt.host.inodes.moved import identity_of
from ckpt.host.inodes.places import Place, Refused, mount_of

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class PinDirectories:
    """The directories of pins that belong to one state directory."""

    def __init__(self, state: str) -> None:
        """Of the state directory `state`, which need not be there yet."""
        self._state = os.path.realpath(state)
        self._name = f".ckpt-pins-{hashlib.sha256(os.fsencode(self._state)).hexdigest()[:8]}"

    @contextmanager
    def making(self, place: Place) -> Iterator[int]:
        """The directory for pins of files at `place`, made if it is missing, open.

        Raises:
            Refused: it is not ours.
            OSError: it cannot be made.
        """
        with self._parent(place) as (parent, name):
            with suppress(FileExistsError):
                os.mkdir(name, mode=0o700, dir_fd=parent)
            with _opened(parent, name) as directory:
                yield directory

    @contextmanager
    def there(self, place: Place) -> Iterator[int | None]:
        """The directory for pins of files at `place`, open; None if it is missing.

        Raises:
            Refused: it is not ours.
            OSError: it cannot be opened.
        """
        with self._parent(place) as (parent, name):
            try:
                os.stat(name, dir_fd=parent, follow_symlinks=False)
            except FileNotFoundError:
                yield None
                return
            with _opened(parent, name) as directory:
                yield directory

    def count_of(self, place: Place, status: os.stat_result) -> int:
        """How many names of the file at `place` are pins of ours: none, or one."""
        with suppress(OSError, Refused), self.there(place) as directory:
            if directory is not None:
                pin = os.stat(pin_name(status.st_ino), dir_fd=directory, follow_symlinks=False)
                return int(identity_of(pin) == identity_of(status))
        return 0

    @contextmanager
    def _parent(self, place: Place) -> Iterator[tuple[int, str]]:
        fd, name = self._open_parent(place)
        try:
            yield fd, name
        finally:
            os.close(fd)

    def _open_parent(self, place: Place) -> tuple[int, str]:
        mount = place.mount
        with suppress(FileNotFoundError):
            own = os.open(f"{self._state}/pins", _DIRECTORY)
            if mount_of(own) == mount:
                return own, "files"
            os.close(own)
        return _top(place.directory, mount), self._name


def pin_name(inode: int) -> str:
    """What the pin of a file with this inode number is called."""
    return str(inode)


def pin_place(directory: int, inode: int) -> Place:
    """The place of a pin in an open directory of pins."""
    name = pin_name(inode)
    return Place(path=f"{path_of(directory)}/{name}", directory=directory, name=name)


def path_of(directory: int) -> str:
    """The path of an open directory."""
    return os.readlink(f"/proc/self/fd/{directory}")


def is_ours(directory: int) -> bool:
    """Whether an open directory belongs to us, and nobody else may enter it."""
    status = os.fstat(directory)
    return status.st_uid == os.geteuid() and stat.S_IMODE(status.st_mode) == 0o700


@contextmanager
def _opened(parent: int, name: str) -> Iterator[int]:
    fd = os.open(name, _DIRECTORY, dir_fd=parent)
    try:
        if not is_ours(fd):
            raise Refused(f"the directory {path_of(fd)} is not for us alone")
        yield fd
    finally:
        os.close(fd)


def _top(directory: int, mount: tuple[int, int]) -> int:
    """The topmost directory of the mount, opened."""
    fd = os.open(".", _DIRECTORY, dir_fd=directory)
    while True:
        above = os.open("..", _DIRECTORY, dir_fd=fd)
        if mount_of(above) != mount or os.path.samestat(os.fstat(above), os.fstat(fd)):
            os.close(above)
            return fd
        os.close(fd)
        fd = above
