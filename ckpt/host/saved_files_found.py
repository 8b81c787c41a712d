"""Which files are to be kept with the memory: those that were named, and all in the directories that were.

Rules:
- Regular files only. No symbolic link is followed: the named path is resolved once, before anything else.
- A directory stands for what is in it and below it on its own file system; another one that is mounted in it
  must be named by itself. What is not entered and not kept is told.
- A store of checkpoints is not entered (saved_files_spared.py).
- What ckpt itself makes beside files for a time (TEMPORARY_PREFIX) is nobody's file.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from ckpt.errors import OsRefused, Usage
from ckpt.host.inodes.ledger import TEMPORARY_PREFIX
from ckpt.host.inodes.places import PATH_BYTES_MAX, is_plain
from ckpt.host.inspection import syscalls
from ckpt.host.mounts import KERNEL_FILESYSTEMS, mounts_of
from ckpt.host.saved_files_spared import is_store

FILES_MAX: Final = 100_000
"""How many files one checkpoint keeps: each takes about 250 bytes of its manifest, which has a bound."""

WITH_FILES: Final = "--with-files"
"""The option of 'ckpt dump' that names such files."""

_KERNEL_MADE: Final = KERNEL_FILESYSTEMS | {
    "autofs", "binfmt_misc", "bpf", "configfs", "efivarfs", "fusectl", "hugetlbfs", "nsfs", "pstore", "selinuxfs",
}  # fmt: skip
_NAMED_MAX: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundFile:
    """A regular file or a directory, and what lstat(2) says of it."""

    path: str
    status: os.stat_result


@dataclass(slots=True)
class Found:
    """What was found below the named paths.

    `walked` are the directories with what is in them, each after those that it is in, `gone` are named paths where
    nothing is, `others` what is neither a regular file nor a directory, `mounted` the directories of other file
    systems and `stores` those of checkpoints, which were not entered.
    """

    option: str
    files: list[FoundFile] = field(default_factory=list)
    walked: list[FoundFile] = field(default_factory=list)
    directories: list[str] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    mounted: list[str] = field(default_factory=list)
    stores: list[str] = field(default_factory=list)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What of it is not kept, in sentences."""
        told = (
            (self.gone, "{count} named path(s) had gone when the workload stood still: {named}"),
            (self.others, "{count} link(s), socket(s) or FIFO(s) are not saved, only files are: {named}"),
            (self.mounted, "{count} other file system(s) are not saved, name them by themselves: {named}"),
            (self.stores, "{count} store(s) of checkpoints are not saved, nor touched by a restore: {named}"),
        )
        return tuple(
            sentence.format(count=len(paths), named=name_some(paths)) for paths, sentence in told if paths
        )


def check_paths(paths: Sequence[str], own: str, *, option: str = WITH_FILES) -> tuple[str, ...]:
    """The named paths, resolved, without those that stand in others of them.

    Args:
        paths: As the user named them.
        own: ckpt's own directory.
        option: How the user named them.

    Raises:
        Usage: one is not there, is neither a file nor a directory, is made up by the kernel, or has `own` in it.
    """
    resolved = sorted({_checked(path, os.path.realpath(own), option) for path in paths})
    return tuple(
        path for path in resolved if not any(path != other and is_below(path, other) for other in resolved)
    )


def find_files(paths: Sequence[str], *, option: str = WITH_FILES) -> Found:
    """The files that the resolved paths stand for now, in the order of their paths.

    Args:
        paths: What check_paths() gave.
        option: How the user named them.

    Raises:
        OsRefused: a directory cannot be read.
        Usage: there are too many.
    """
    found = Found(option=option)
    for path in paths:
        try:
            status = os.stat(path, follow_symlinks=False)
        except FileNotFoundError:
            found.gone.append(path)
            continue
        except OSError as error:
            raise _unreadable(path, error) from error
        if stat.S_ISDIR(status.st_mode):
            found.directories.append(path)
            _walk(path, status, found)
        else:
            _sort_in(path, status, found)
    return found


def filesystem_of(path: str) -> str:
    """The type of the file system that the path leads to; "" if that cannot be known."""
    with suppress(OSError):
        mount_id = syscalls.statx(path).mount_id
        return next((mount.filesystem for mount in mounts_of("self") if mount.mount_id == mount_id), "")
    return ""


def is_below(path: str, directory: str) -> bool:
    """Whether the path is that of the directory or of something in it."""
    return path == directory or path.startswith(directory.rstrip("/") + "/")


def name_some(paths: Sequence[str]) -> str:
    """The first of the paths, for a sentence."""
    return ", ".join(paths[:_NAMED_MAX]) + (" …" if len(paths) > _NAMED_MAX else "")


def _checked(path: str, own: str, option: str) -> str:
    resolved = os.path.realpath(path)
    try:
        status = os.stat(resolved, follow_symlinks=False)
    except OSError as error:
        raise _refused(option, path, "there is no such file or directory", "Name what is there.") from error
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
        raise _refused(
            option, path, "it is neither a regular file nor a directory", "Name files or directories."
        )
    filesystem = filesystem_of(resolved)
    if filesystem in _KERNEL_MADE:
        raise _refused(
            option, path, f"it is on {filesystem}, which the kernel makes up", "Name files of your own."
        )
    if is_below(own, resolved) or is_below(resolved, own):
        relation = f"ckpt's own {own} is in it" if is_below(own, resolved) else f"it is in ckpt's own {own}"
        raise _refused(
            option,
            path,
            relation,
            "Name the directories that the workload writes to, or set CKPT_STATE to a directory elsewhere.",
        )
    if not is_plain(resolved):
        raise _refused(option, path, "its path is too long", "Name a shorter one.")
    return resolved


def _walk(top: str, at_top: os.stat_result, found: Found) -> None:
    # Not by recursion: a chain of directories may be longer than Python's stack.
    waiting = [FoundFile(path=top, status=at_top)]
    while waiting:
        directory = waiting.pop()
        entries = _entries(directory.path)
        if is_store(entry.name for entry in entries):
            found.stores.append(directory.path)
            continue
        _count_one(found)
        found.walked.append(directory)
        below = []
        for path, status in _statuses(entries):
            if not stat.S_ISDIR(status.st_mode):
                _sort_in(path, status, found)
            elif status.st_dev != at_top.st_dev:
                found.mounted.append(path)
            else:
                below.append(FoundFile(path=path, status=status))
        waiting += reversed(below)


def _entries(directory: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(directory) as scanned:
            return sorted(scanned, key=lambda entry: entry.name)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise _unreadable(directory, error) from error


def _statuses(entries: list[os.DirEntry[str]]) -> Iterator[tuple[str, os.stat_result]]:
    for entry in entries:
        if not entry.name.startswith(TEMPORARY_PREFIX):
            # It may have been removed since, by somebody else: then it is not there.
            with suppress(FileNotFoundError):
                yield entry.path, entry.stat(follow_symlinks=False)


def _sort_in(path: str, status: os.stat_result, found: Found) -> None:
    # The directories above were checked, and no name has more than its own letters in it.
    if not stat.S_ISREG(status.st_mode) or len(os.fsencode(path)) >= PATH_BYTES_MAX:
        found.others.append(path)
        return
    _count_one(found)
    found.files.append(FoundFile(path=path, status=status))


def _count_one(found: Found) -> None:
    if len(found.files) == FILES_MAX or len(found.walked) == FILES_MAX:
        size = sum(file.status.st_size for file in found.files)
        raise Usage(
            problem=f"{found.option}: there are more than {FILES_MAX} files, the first of which have {size} bytes.",
            remedy="Name the directories that the workload writes to.",
        )


def _unreadable(path: str, error: OSError) -> OsRefused:
    return OsRefused(operation="read", subject=path, reason=error.strerror or str(error))


def _refused(option: str, path: str, reason: str, remedy: str) -> Usage:
    return Usage(problem=f"{option} {path}: {reason}.", remedy=remedy)
