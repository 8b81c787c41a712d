"""Let a name lead to another inode, and keep the former one under a second name until the restore has succeeded.

Rules:
- The two names change places in one step: at no moment is there no file.
- All names of a file change, or none: two names of one file must not become two files. They are looked for in
  the directory; a file with names elsewhere is left alone.
Source: renameat2(2), RENAME_EXCHANGE.
"""

from __future__ import annotations

import errno
import os

from ckpt.host.inodes import calls
from ckpt.host.inodes.changes import Changes, temporary_name
from ckpt.host.inodes.ledger import Swapped
from ckpt.host.inodes.moved import MovedFile, identity_of
from ckpt.host.inodes.places import Place, Refused


def check_unchanged(file: MovedFile, now: os.stat_result) -> None:
    """Nothing, if this is still the file that was compared with its record.

    Raises:
        Refused: it is another one, or was written to.
    """
    if _version(now) != _version(file.found):
        raise Refused("it has changed since it was compared")


def names_to_swap(place: Place, status: os.stat_result, pins: int) -> list[str]:
    """All names of the file at `place`, of which `pins` more are in a directory of pins.

    Raises:
        Refused: it has names that are not known.
    """
    names = [place.name] if status.st_nlink - pins == 1 else place.names_of(status)
    unknown = status.st_nlink - pins - len(names)
    if unknown or place.name not in names:
        raise Refused(f"it has {unknown} more name(s) (hard links) outside of its directory")
    return names


def swap(place: Place, former: os.stat_result, new: int, names: list[str], changes: Changes) -> list[str]:
    """Let `names` in the directory of `place`, which lead to the file `former`, lead to the open file `new`.

    Returns:
        The paths by which the former file can be reached from now on.

    Raises:
        Refused: the file system cannot do that, or somebody else was at these names.
        OSError: it was refused; whoever calls takes back what was noted.
    """
    wanted = os.fstat(new)
    directory = place.directory_path.rstrip("/")
    kept = []
    for name in names:
        other = temporary_name()
        changes.note(
            Swapped(
                path=f"{directory}/{name}",
                other=other,
                device=former.st_dev,
                inode=former.st_ino,
            )
        )
        calls.link_at(new, place.directory, other)
        exchange_names(place, other, name)
        compare_names(place, name, wanted, other, former)
        kept.append(f"{directory}/{other}")
    return kept


def exchange_names(place: Place, other: str, name: str) -> None:
    """Let two names of a directory change places.

    Raises:
        Refused: the file system cannot do that.
        OSError: it was refused.
    """
    try:
        calls.exchange(place.directory, other, name)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.ENOSYS):
            raise Refused("its file system cannot let two names change places") from error
        if error.errno == errno.EBUSY:
            raise Refused("something is mounted on it") from error
        raise


def compare_names(
    place: Place, name: str, wanted: os.stat_result, other: str, former: os.stat_result
) -> None:
    """Nothing, if both names lead where they should.

    Raises:
        Refused: somebody else was quicker.
    """
    now = os.stat(name, dir_fd=place.directory, follow_symlinks=False)
    kept = os.stat(other, dir_fd=place.directory, follow_symlinks=False)
    if identity_of(now) != identity_of(wanted) or identity_of(kept) != identity_of(former):
        raise Refused("another process replaced it meanwhile")


def _version(status: os.stat_result) -> tuple[int, ...]:
    return (status.st_dev, status.st_ino, status.st_mode, status.st_size, status.st_mtime_ns)
