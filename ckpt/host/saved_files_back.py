"""Saved files written back before a restore, so that files and memory are of one instant again.

Rules:
- Nothing is changed before everything that may refuse was asked (saved_files_look.py).
- A file that is there keeps its inode. Several names of one file stay names of one file where they still are, and
  become that again where they are made anew.
- Files in a directory that was saved whole, and were not there at the dump, are moved aside.
- All of it is taken back if the restore fails, by this process or by another one later.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from ckpt.errors import CkptError, OsRefused
from ckpt.host.criu.regular_files import accept_changed
from ckpt.host.inodes import calls
from ckpt.host.inodes.changes import Changes
from ckpt.host.inodes.contents import Attributes, SavedContents
from ckpt.host.inodes.directories import MadeDirectories
from ckpt.host.inodes.ledger import Ledger, Made
from ckpt.host.inodes.places import Refused, opened_place
from ckpt.host.operations import JournaledOperation
from ckpt.host.saved_files_aside import (
    ASIDES_KEPT,
    move_aside,
    move_back,
    newer_files,
    place_beside,
    remove_older,
)
from ckpt.host.saved_files_found import name_some
from ckpt.host.saved_files_look import PERMISSIONS, Content, look
from ckpt.model.checkpoint import SavedFile, StoredFile
from ckpt.model.shipping import ShippedDirectory

_MARK_LENGTH: Final = 12


class HostFileWriter:
    """Writes saved files back. Fits the port `FileWriter`."""

    def begin(self, operation: object) -> WrittenFiles:
        """Nothing written yet; what is, is noted in an operation that JournaledOperations began."""
        if not isinstance(operation, JournaledOperation):
            raise TypeError(operation)
        return WrittenFiles(operation)

    def accept_changed(self, images: tuple[str, ...], paths: frozenset[str]) -> None:
        """Let CRIU take the files at these paths as they are now, whatever their sizes and modes were.

        Raises:
            ObjectCorrupt, OsRefused: the images cannot be read or written.
        """
        for directory in images:
            accept_changed(Path(directory), paths)


class WrittenFiles:
    """The saved files of one restore. Fits the port `WrittenFiles`."""

    def __init__(self, operation: JournaledOperation) -> None:
        self._operation = operation
        ledger = Ledger(operation.ledger)
        self._contents = SavedContents(ledger)
        self._links = Changes(ledger)
        self._aside: list[tuple[str, str]] = []
        self._directories = MadeDirectories(operation)
        self._warnings: list[str] = []

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user should know of it, in sentences."""
        return tuple(self._warnings)

    def write(
        self,
        ref: str,
        files: Sequence[tuple[SavedFile, str]],
        directories: Sequence[str],
        *,
        absent: Sequence[str] = (),
        made: Sequence[ShippedDirectory] = (),
        job: str = "",
    ) -> None:
        """Let all saved files be as they were at the dump; call undo() if it fails.

        Args:
            ref: The checkpoint, as the user named it.
            files: Each with the path of its content.
            directories: Those that were saved whole.
            absent: Paths outside of them at which no file was: what is there now is moved aside, too.
            made: Directories that are made where they are missing, each after those that it is in.
            job: What is restored: of ckpt's own files its logs alone are written.

        Raises:
            HostMismatch: files cannot be written; each is named with the reason, and nothing was changed.
            NoSpace: a file system has too little space; nothing was changed.
            OsRefused: something could not be done that should have been possible.
        """
        contents = [Content(file=file, copy=copy) for file, copy in files]
        # Where one name of a file is still there, the others become names of it again.
        contents.sort(key=lambda content: not os.path.lexists(content.file.path))
        own = self._operation.kept("")
        looked = look(ref, contents, directories, own, absent=absent, made=made, job=job)
        if looked.of_others:
            self._warnings.append(
                f"{len(looked.of_others)} log(s) of another job stay as they are: {name_some(sorted(looked.of_others))}"
            )
            contents = [content for content in contents if content.file.path not in looked.of_others]
        self._operation.await_guardian()
        self._operation.note_files(committed=False)
        for directory in directories:
            self._move_newer_aside(directory, {content.file.path for content in contents} | looked.of_others)
        for directory, stray in looked.stray.items():
            self._move_aside(directory, stray)
        for top, path in looked.tops.items():
            self._directories.note(top)
            self._warnings.append(
                f"the directory {top} was missing and was made" + (f", for {path}" if path != top else "")
            )
        for each in made:
            _make_directory(each)
        first: dict[StoredFile, str] = {}
        for content in contents:
            path = content.file.path
            if path not in looked.unchanged:
                self._write(content, first.get(content.file.content))
            if not first:
                self._operation.note_phase("rewriting")
            first.setdefault(content.file.content, path)
        self._operation.note_phase("rewritten")

    def undo(self) -> None:
        """Leave everything as it was found; safe to repeat.

        Raises:
            OsRefused: something could not be taken back; all else was.
        """
        failed: CkptError | None = None
        for changes in (self._links, self._contents):
            try:
                changes.undo()
            except CkptError as error:
                failed = error
        self._directories.undo()
        for directory, aside in self._aside:
            try:
                move_back(directory, aside)
                self._operation.forget_set_aside(directory, aside)
            except CkptError as error:
                failed = error
        self._aside.clear()
        if failed is not None:
            raise failed

    def settle(self) -> None:
        """The restore is committed: remove what only undo() needed. Never fails."""
        self._contents.settle()
        self._links.settle()
        for _, aside in self._aside:
            remove_older(aside)
        self._aside.clear()
        self._directories.settle()

    def _move_newer_aside(self, directory: str, saved: set[str]) -> None:
        with _told("move files aside in", directory):
            newer = newer_files(directory, saved) if os.path.isdir(directory) else []
        if newer:
            self._move_aside(directory, newer)

    def _move_aside(self, directory: str, newer: Sequence[str]) -> None:
        with _told("move files aside in", directory):
            aside = place_beside(directory, self._operation.id[:_MARK_LENGTH])
            self._operation.note_set_aside(directory, aside)
            self._aside.append((directory, aside))
            move_aside(directory, aside, newer)
        self._warnings.append(
            f"{len(newer)} file(s) that were not there at the dump were moved from {directory} to {aside}, where "
            f"those of the last {ASIDES_KEPT} restores stay: {name_some(newer)}"
        )

    def _write(self, content: Content, first: str | None) -> None:
        """Write the file; `first` is another name of it that has been written, None for none."""
        file = content.file
        self._directories.make_above(file.path, file.uid, file.gid)
        if first is not None and self._is_linked(file.path, first):
            return
        with _told("read", content.copy):
            source = os.open(content.copy, os.O_RDONLY | os.O_CLOEXEC)
        attributes = Attributes(
            mode=file.mode & PERMISSIONS,
            uid=file.uid,
            gid=file.gid,
            mtime_ns=file.mtime_ns,
            extended=file.attributes,
        )
        try:
            self._contents.write_into(file.path, source, attributes)
        finally:
            os.close(source)

    def _is_linked(self, path: str, first: str) -> bool:
        """Whether the path leads to the file that has been written by its first path; made so if nothing is there."""
        with suppress(OSError, Refused), opened_place(first) as one, opened_place(path) as other:
            status = one.status()
            if other.exists():
                return os.path.samestat(status, other.status())
            with one.opened(os.O_PATH) as fd, self._links.all_or_none():
                self._links.note(Made(path=path, device=status.st_dev, inode=status.st_ino))
                calls.link_at(fd, other.directory, other.name)
            return True
        return False


def _make_directory(directory: ShippedDirectory) -> None:
    """Make it if it is missing; what it is in is there, or belongs to root."""
    path = directory.path
    if os.path.lexists(path):
        return
    with _told("make the directory", path):
        os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
        os.mkdir(path, mode=0o700)
        os.chown(path, directory.uid, directory.gid)
        os.chmod(path, directory.mode & PERMISSIONS)


@contextmanager
def _told(operation: str, subject: str) -> Iterator[None]:
    """Foreign errors become ours."""
    try:
        yield
    except OSError as error:
        raise OsRefused(operation=operation, subject=subject, reason=error.strerror or str(error)) from error
