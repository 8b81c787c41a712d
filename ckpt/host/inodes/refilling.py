"""Give an inode another content, and keep beside it what it held until the restore has succeeded."""

from __future__ import annotations

import os

from ckpt.host.inodes import calls, copying
from ckpt.host.inodes.changes import Changes, temporary_name
from ckpt.host.inodes.ledger import Overwritten, Shortened
from ckpt.host.inodes.places import Place


def refill(source: int, target: int, place: Place, changes: Changes) -> None:
    """Let the open file `target`, which is at `place`, hold what `source` holds, and have its attributes.

    Raises:
        OSError: there is no space; whoever calls takes back what was noted.
    """
    content = not copying.same_content(source, target)
    if not content and copying.same_attributes(source, target):
        return
    keep_former(source, target, place, changes, content=content)
    if content:
        copying.copy_content(source, target)
    copying.copy_attributes(source, target)
    os.fsync(target)


def keep_former(source: int, target: int, place: Place, changes: Changes, *, content: bool) -> None:
    """Keep beside `target` what it is now, and note that it is about to become what `source` is.

    Args:
        source: Whose content it will have.
        target: The file at `place`, open for reading.
        place: Where it is.
        changes: Where it is noted.
        content: Whether its content changes; else only its attributes do.

    Raises:
        OSError: there is no space for both; nothing was changed.
    """
    needed = copying.needed_bytes(source) + copying.needed_bytes(target) if content else 0
    copying.check_space(place.directory, needed)
    kept = temporary_name()
    with place.unnamed() as copy:
        if content:
            copying.copy_content(target, copy)
        status = os.fstat(target)
        line = Overwritten(
            path=place.path, kept=kept, device=status.st_dev, inode=status.st_ino, content=content
        )
        _keep(copy, target, place, changes, line)


def keep_tail(target: int, size: int, place: Place, changes: Changes) -> None:
    """Keep beside `target` what it holds after its first `size` bytes, and note that it is about to be cut there.

    Raises:
        OSError: there is no space for that; nothing was changed.
    """
    status = os.fstat(target)
    copying.check_space(place.directory, status.st_size - size)
    kept = temporary_name()
    with place.unnamed() as copy:
        copying.copy_to(target, size, copy, 0)
        line = Shortened(
            path=place.path, kept=kept, device=status.st_dev, inode=status.st_ino, size_bytes=size
        )
        _keep(copy, target, place, changes, line)


def _keep(copy: int, target: int, place: Place, changes: Changes, line: Overwritten | Shortened) -> None:
    copying.copy_attributes(target, copy)
    # A copy that has its name is complete, and durable before the original is touched.
    os.fsync(copy)
    changes.note(line)
    calls.link_at(copy, place.directory, line.kept)
    if line.has_content:
        os.fsync(place.directory)
