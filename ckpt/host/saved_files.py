"""Files that the user wants kept with the memory: copied while the workload stands still.

Rules:
- Whatever can refuse is asked before the freeze: the paths, and the space for copies. What does not seem to change
  is copied then, too (saved_files_early.py), and a log is read after it (saved_files_appended.py). Under it only what
  must be is done: a clone where the file system can, else a copy of what is not a hole.
- Clones of files on another file system than the staging area's lie at the top of its mount, in a directory that
  the journal names before it is made.
- Several names of one file are copied once, and their contents have one name in the checkpoint: that is how a
  restore knows. The name is made from the first path, so that the next dump of these files finds it again.
- A file that changes though the workload stands still has another writer: that is told.
Source: ioctl_ficlone(2).
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field

from ckpt.errors import NoSpace, OsRefused
from ckpt.host import sparse_copy
from ckpt.host.inodes import calls
from ckpt.host.inodes.attributes import attributes_of
from ckpt.host.inodes.ledger import TEMPORARY_PREFIX
from ckpt.host.inspection import syscalls
from ckpt.host.mounts import mounts_of
from ckpt.host.operations import JournaledOperation
from ckpt.host.saved_files_appended import AppendedFiles
from ckpt.host.saved_files_early import EarlyCopies
from ckpt.host.saved_files_found import Found, FoundFile, check_paths, find_files, name_some
from ckpt.host.saved_files_record import READ, content_name, saved_file, version_of
from ckpt.model.checkpoint import ExtendedAttribute, SavedFile

_Copy = tuple[FoundFile, tuple[ExtendedAttribute, ...], str]
"""A file, its own attributes, and the path of its copy: what is said of it in the checkpoint is made after the thaw."""


class HostFileSaver:
    """Keeps files of this host. Fits the port `FileSaver`."""

    def select(
        self, paths: tuple[str, ...], operation: object, *, appended: tuple[str, ...] = ()
    ) -> FileSelection:
        """Check the named paths, and prepare to copy what they stand for.

        Args:
            paths: Of files and directories, as the user named them; none for nothing.
            operation: One that JournaledOperations began (an `object`, as a port's adapter must take any).
            appended: Files that only ever grow: they are read after the thaw. A missing one is none.

        Raises:
            Usage: a path cannot be kept.
            NoSpace: there is no room for the copies.
            OsRefused: something of it cannot be read.
        """
        if not isinstance(operation, JournaledOperation):
            raise TypeError(operation)
        selection = FileSelection(
            check_paths(paths, operation.kept("")) if paths else (),
            AppendedFiles(appended, operation.kept("")),
            operation,
        )
        try:
            selection.prepare()
        except BaseException:
            selection.drop()
            raise
        return selection


class FileSelection:
    """Files that are to be kept, and their copies once they are taken. Fits the port `FileSelection`."""

    def __init__(
        self, paths: tuple[str, ...], appended: AppendedFiles, operation: JournaledOperation
    ) -> None:
        self._paths = paths
        self._appended = appended
        self._early = EarlyCopies()
        self._operation = operation
        self._places: dict[int, str] = {}
        self._made: list[str] = []
        self._copies: list[_Copy] = []
        self._directories: tuple[str, ...] = ()
        self._warnings: tuple[str, ...] = ()

    @property
    def files(self) -> tuple[tuple[SavedFile, str], ...]:
        """What was taken, each file with the path of its copy; the root of its content is not known yet."""
        names: dict[str, str] = {}
        for file, _, copy in self._copies:
            names.setdefault(copy, content_name(file.path))
        return tuple(
            (saved_file(file, names[copy], attributes, size=file.status.st_size), copy)
            for file, attributes, copy in self._copies
        )

    @property
    def directories(self) -> tuple[str, ...]:
        """The named directories, of which every file was taken."""
        return self._directories

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user should know of it, in sentences."""
        return self._warnings

    def appended(self) -> Iterator[tuple[SavedFile, Callable[[int], bytes]]]:
        """Each file that only grows, with a reader of its content up to where it ended at take(); after the thaw.

        Raises:
            OsRefused: one cannot be read.
        """
        return self._appended.read()

    @property
    def late_warnings(self) -> tuple[str, ...]:
        """What the user should know of the files that appended() gave, in sentences."""
        return self._appended.warnings

    def prepare(self) -> None:
        """Find out where files can be cloned, whether there is space for those that cannot; copy what seems to rest.

        Raises:
            NoSpace, OsRefused, Usage: as HostFileSaver.select() says.
        """
        found = find_files(self._paths)
        needed = 0
        for device, files in _by_device(found).items():
            self._places[device] = self._place_of(files[0].path, device)
            if not _can_clone(files[0].path, self._places[device]):
                needed += _allocated(files)
                if self._places[device] != self._operation.staging:
                    self._remove(self._places[device])
                    self._places[device] = self._operation.staging
        space = os.statvfs(self._operation.staging)
        if needed > space.f_bavail * space.f_frsize:
            raise self._no_space(needed)
        self._early.make(
            (file for file in found.files if file.path not in self._appended.paths), self._places
        )

    def take(self) -> None:
        """Copy the files as they are now, in the `stopped` call.

        Raises:
            NoSpace: there is no room for the copies.
            OsRefused: something of it cannot be read.
            Usage: there are too many files by now.
        """
        self._appended.note_ends()
        found = find_files(self._paths)
        taken = _Taken()
        for file in found.files:
            if file.path in self._appended.paths:
                continue
            early = self._early.of(file.status)
            if early is not None:  # it need not even be opened
                taken.copies.append((file, early.attributes, early.path))
                continue
            try:
                self._take(file, taken)
            except OSError as error:
                raise self._refused(file, error) from error
        self._copies = taken.copies
        self._directories = tuple(found.directories)
        self._warnings = (*found.warnings, *taken.warnings())

    def drop(self) -> None:
        """Remove the copies; safe to repeat."""
        self._appended.drop()
        for directory in list(self._made):
            self._remove(directory)

    def _place_of(self, path: str, device: int) -> str:
        """Where copies of the files on this device go, if they can be cloned."""
        staging = self._operation.staging
        if device == os.stat(staging).st_dev:
            return staging
        mount_id = syscalls.statx(path).mount_id
        top = next((mount.mountpoint for mount in mounts_of("self") if mount.mount_id == mount_id), "")
        if not top:
            return staging
        directory = f"{top.rstrip('/')}/{TEMPORARY_PREFIX}{secrets.token_hex(8)}"
        self._operation.note_directory(directory)
        self._made.append(directory)
        try:
            os.mkdir(directory, mode=0o700)
        except OSError:
            self._remove(directory)
            return staging
        return directory

    def _remove(self, directory: str) -> None:
        shutil.rmtree(directory, ignore_errors=True)
        self._operation.forget_directory(directory)
        self._made.remove(directory)

    def _take(self, file: FoundFile, taken: _Taken) -> None:
        try:
            source = os.open(file.path, READ)
        except FileNotFoundError:
            taken.changed.append(file.path)
            return
        try:
            status = os.fstat(source)
            key = (status.st_dev, status.st_ino)
            if key not in taken.copy_of:
                place = self._places.get(status.st_dev, self._operation.staging)
                copy = f"{place}/{content_name(file.path)}"
                sparse_copy.copy_frozen(source, status.st_size, copy)
                taken.copy_of[key] = copy
            attributes = attributes_of(source)
        finally:
            os.close(source)
        seen = FoundFile(path=file.path, status=status)
        taken.seen.append(seen)
        taken.copies.append((seen, attributes, taken.copy_of[key]))

    def _refused(self, file: FoundFile, error: OSError) -> NoSpace | OsRefused:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return self._no_space(file.status.st_size)
        return OsRefused(operation="copy", subject=file.path, reason=error.strerror or str(error))

    def _no_space(self, needed: int) -> NoSpace:
        space = os.statvfs(self._operation.staging)
        return NoSpace(
            place=self._operation.kept(""),
            available_bytes=space.f_bavail * space.f_frsize,
            needed_bytes=needed,
            option="CKPT_STATE on the file system of the files, where that can clone files (XFS, Btrfs)",
        )


@dataclass(slots=True)
class _Taken:
    """What take() has done so far; `copy_of` goes from a file's device and number to the path of its copy."""

    copies: list[_Copy] = field(default_factory=list)
    copy_of: dict[tuple[int, int], str] = field(default_factory=dict)
    seen: list[FoundFile] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)

    def warnings(self) -> tuple[str, ...]:
        """What was written to from outside, from the first copy to the last."""
        changed = self.changed + [file.path for file in self.seen if not _is_as_it_was(file)]
        if not changed:
            return ()
        sentence = (
            f"{len(changed)} saved file(s) were written to by another process while the workload stood still, "
            f"so they are not of one instant: {name_some(changed)}"
        )
        return (sentence,)


def _is_as_it_was(file: FoundFile) -> bool:
    with suppress(OSError):
        return version_of(os.stat(file.path, follow_symlinks=False)) == version_of(file.status)
    return False


def _by_device(found: Found) -> dict[int, list[FoundFile]]:
    """The files of each file system; the first one is the best to try a clone with, as it has content."""
    files: dict[int, list[FoundFile]] = {}
    for file in sorted(found.files, key=lambda file: not file.status.st_size):
        files.setdefault(file.status.st_dev, []).append(file)
    return files


def _allocated(files: list[FoundFile]) -> int:
    """What copies of the files take, each counted once, in bytes."""
    return sum({file.status.st_ino: file.status.st_blocks * 512 for file in files}.values())


def _can_clone(path: str, directory: str) -> bool:
    with suppress(OSError):
        source = os.open(path, READ)
        try:
            target = os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
            try:
                calls.clone(source, target)
            finally:
                os.close(target)
        finally:
            os.close(source)
        return True
    return False
