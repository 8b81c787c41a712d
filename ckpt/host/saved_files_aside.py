"""Files that were not there at the dump are moved aside: a later journal would roll a database back.

Rules:
- They keep their paths below the directory that they are moved to, so that it alone tells how to move them back.
- No file of another file system is moved, and none is written over.
- They are kept for people. So that they do not pile up with each restore, those of the last ASIDES_KEPT restores are.
- Only the standard library and small modules are imported: the guardian holds this module in its memory.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
from collections.abc import Collection, Iterator
from contextlib import suppress
from typing import Final

from ckpt.errors import OsRefused
from ckpt.host.inodes.ledger import TEMPORARY_PREFIX
from ckpt.host.inspection import syscalls
from ckpt.host.saved_files_spared import is_store

ASIDES_KEPT: Final = 3

_MARK: Final = re.compile(r"[0-9a-f]{12}")


def newer_files(directory: str, saved: Collection[str]) -> list[str]:
    """The regular files in and below a directory that are not among the saved paths.

    Raises:
        OSError: it cannot be read.
    """
    # Not by the device: an overlay's files have others than its directories.
    mount = syscalls.statx(directory).mount_id
    return [
        path
        for path, status in _below(directory)
        if stat.S_ISREG(status.st_mode) and path not in saved and syscalls.statx(path).mount_id == mount
    ]


def place_beside(directory: str, mark: str) -> str:
    """Where files of the directory are moved to: beside it, or in it where that is another file system.

    Raises:
        OSError: it cannot be read.
    """
    parent, name = os.path.split(directory)
    if os.path.ismount(directory) or os.stat(parent).st_dev != os.stat(directory).st_dev:
        return f"{directory}/{TEMPORARY_PREFIX}aside-{mark}"
    return f"{parent.rstrip('/')}/{name}.aside-{mark}"


def move_aside(directory: str, aside: str, paths: Collection[str]) -> None:
    """Move files of a directory to the same paths below `aside`, which is made.

    Raises:
        OSError: one cannot be moved; move_back() takes back what was done.
    """
    os.mkdir(aside, mode=0o700)
    for path in paths:
        target = f"{aside}/{path[len(directory) + 1 :]}"
        os.makedirs(os.path.dirname(target), mode=0o700, exist_ok=True)
        os.rename(path, target)


def move_back(directory: str, aside: str) -> int:
    """Move all files below `aside` back to their paths in the directory, and remove it; gives how many they were.

    Raises:
        OsRefused: one cannot be moved, or another has its place by now; all others were.
    """
    count = 0
    failed: OsRefused | None = None
    for path, status in list(_below(aside)):
        if stat.S_ISDIR(status.st_mode):
            continue
        target = f"{directory}/{path[len(aside) + 1 :]}"
        try:
            # Unlike rename(2), link(2) never writes over what is there.
            os.link(path, target, follow_symlinks=False)
            os.unlink(path)
            count += 1
        except OSError as error:
            failed = OsRefused(
                operation="move back",
                subject=target,
                reason=error.strerror or str(error),
                remedy=f"It is {path}.",
            )
    for path, status in reversed(list(_below(aside))):
        if stat.S_ISDIR(status.st_mode):
            with suppress(OSError):
                os.rmdir(path)
    with suppress(OSError):
        os.rmdir(aside)
    if failed is not None:
        raise failed
    return count


def remove_older(aside: str) -> None:
    """Remove what earlier restores moved aside from the same directory, but for the last ones; never fails."""
    parent, name = os.path.split(aside)
    prefix = name[: name.rindex("-") + 1]
    with suppress(OSError), os.scandir(parent) as entries:
        found = [
            (status.st_ctime_ns, entry.path)
            for entry in entries
            if entry.name.startswith(prefix)
            and _MARK.fullmatch(entry.name[len(prefix) :])
            and stat.S_ISDIR((status := entry.stat(follow_symlinks=False)).st_mode)
            and (status.st_uid, stat.S_IMODE(status.st_mode)) == (os.geteuid(), 0o700)
        ]
        for _, path in sorted(found, reverse=True)[ASIDES_KEPT:]:
            shutil.rmtree(path, ignore_errors=True)


def _below(directory: str) -> Iterator[tuple[str, os.stat_result]]:
    """All that is below a directory, parents first; nothing of what ckpt made, nor of other mounts."""
    waiting = [directory]
    while waiting:
        current = waiting.pop()
        try:
            with os.scandir(current) as scanned:
                entries = sorted(scanned, key=lambda entry: entry.name)
        except FileNotFoundError:
            continue
        if is_store(entry.name for entry in entries):
            continue
        for entry in entries:
            if entry.name.startswith(TEMPORARY_PREFIX):
                continue
            status = entry.stat(follow_symlinks=False)
            yield entry.path, status
            if stat.S_ISDIR(status.st_mode) and status.st_dev == os.stat(current).st_dev:
                waiting.append(entry.path)
