"""The rungs before a restore, in their order: what can be done to files, so that they are those that were seen.

    same      it is the very file: nothing is done
    pinned    its inode was kept under a second name at the dump (pins.py)
    placed    ext4: a copy with the number takes its place (placing.py)

What no rung can keep is left to the virtual layer, which shows the numbers to the tasks alone (virtual/); where that
cannot be had, a file system of ours shows the inode numbers, but not the devices (fuse/).

Rules:
- A record is a claim of the checkpoint. A file is touched only if the images name it, too, as held by a task; its
  path is plain; and it is of the recorded kind.
- $CKPT_INODE_METHODS names the methods that may be used ("pinned,placed"), for tests and measurements.
Source: decisions/0010.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from ckpt.errors import CkptError, Interrupted, OsRefused, Usage
from ckpt.host.criu.paths import held_paths
from ckpt.host.inodes.contents import Attributes, SavedContents
from ckpt.host.inodes.directories import MadeDirectories, topmost_missing
from ckpt.host.inodes.fuse import choosing
from ckpt.host.inodes.ledger import Ledger
from ckpt.host.inodes.moved import MovedFile, Rung, matches
from ckpt.host.inodes.pinbook import Pins
from ckpt.host.inodes.pins import PinnedFiles
from ckpt.host.inodes.placing import PlacedFiles
from ckpt.host.inspection.compare import is_compared, is_log
from ckpt.host.inspection.details import kind_of
from ckpt.host.operations import JournaledOperation
from ckpt.model.inodes import InodeMethod, InodeRecord
from ckpt.units import CheckpointId, Nanoseconds

METHODS: Final = "CKPT_INODE_METHODS"


def allowed_methods() -> frozenset[InodeMethod]:
    """What $CKPT_INODE_METHODS allows; everything without it.

    Raises:
        Usage: it names something else.
    """
    wanted = os.environ.get(METHODS)
    if wanted is None:
        return frozenset(InodeMethod)
    try:
        return frozenset(InodeMethod(name.strip()) for name in wanted.split(",") if name.strip())
    except ValueError as error:
        raise Usage(problem=f"{METHODS} is {wanted!r}; it may name {', '.join(InodeMethod)}") from error


class HostKeeper:
    """The rungs of one restore. Fits the port `FileKeeper`."""

    def __init__(self, state: str, operation: JournaledOperation) -> None:
        """Use the pins below the directory `state`."""
        self._operation = operation
        ledger = Ledger(operation.ledger)
        allowed = allowed_methods()
        rungs: tuple[Rung, ...] = (PinnedFiles(state, ledger), PlacedFiles(state, ledger))
        self._rungs = tuple(rung for rung in rungs if rung.method in allowed)
        self._logs = SavedContents(ledger)
        self._directories = MadeDirectories(operation)
        self._changing: tuple[Rung | SavedContents, ...] = (*self._rungs, self._logs)
        self._shows = choosing.is_wanted(allowed)
        self._methods: dict[str, InodeMethod] = {}

    def put_back(self, inodes: tuple[InodeRecord, ...], images: tuple[str, ...]) -> None:
        """Let the recorded paths lead to files with the recorded identities, where that can be done.

        Raises:
            ObjectCorrupt, OsRefused: the images cannot be read, or something cannot be taken back.
            HostMismatch: the workload would lose data by what can be done.
        """
        gone = [record for record in inodes if is_compared(record) and is_log(record) and _is_gone(record)]
        moved = _moved_files(inodes)
        if not gone and not (moved and (self._rungs or self._shows)):
            return
        held = frozenset().union(*(held_paths(Path(directory)) for directory in images))
        left = [file for file in moved if file.path in held]
        if gone or left:
            self._operation.await_guardian()
            self._operation.note_files(committed=False)
        for record in gone:
            if record.path in held:
                self._make_log(record)
        for rung in self._rungs:
            rung.prepare(left)
            left = [file for file in left if not self._kept_by(rung, file)]
        if self._shows:
            shown = choosing.choose(left, inodes)
            choosing.note(self._operation.staging, shown)
            self._methods |= dict.fromkeys(choosing.paths_of(shown), InodeMethod.FUSE)

    @property
    def methods(self) -> Mapping[str, InodeMethod]:
        """How it was done, by path; the other files are as they were found."""
        return self._methods

    def undo(self) -> None:
        """Leave everything as it was found; safe to repeat.

        Raises:
            OsRefused: something could not be taken back; all else was.
        """
        failed: OsRefused | None = None
        for each in reversed(self._changing):
            try:
                each.undo()
            except OsRefused as error:
                failed = error
        self._directories.undo()
        self._methods.clear()
        if failed is not None:
            raise failed

    def settle(self) -> None:
        """The restore is committed: remove what only undo() needed. Never fails."""
        for each in self._changing:
            each.settle()
        self._directories.settle()

    def _make_log(self, record: InodeRecord) -> None:
        """An empty log in the place of one that is gone: CRIU would refuse the restore for it.

        Also its directory may be gone, as that of a job that was forgotten and is restored under another name.
        """
        if top := topmost_missing(record.path):
            self._directories.note(top)
            self._directories.make_above(record.path, record.uid, record.gid)
        nothing = os.memfd_create("empty", os.MFD_CLOEXEC)
        try:
            attributes = Attributes(
                mode=record.mode, uid=record.uid, gid=record.gid, mtime_ns=Nanoseconds(time.time_ns())
            )
            self._logs.write_into(record.path, nothing, attributes)
        finally:
            os.close(nothing)

    def _kept_by(self, rung: Rung, file: MovedFile) -> bool:
        if rung.try_keep(file) is not None:
            return False
        self._methods[file.path] = rung.method
        return True


class HostInodes:
    """The identities of this host's files. Fits the port `Inodes`."""

    def __init__(self, state: str, store: str) -> None:
        """Keep the pins below the directory `state`, for checkpoints in this store."""
        self._state = state
        self._store = store

    def keeper(self, operation: object) -> HostKeeper:
        """A keeper that notes what it does in an operation that JournaledOperations began."""
        if not isinstance(operation, JournaledOperation):
            raise TypeError(operation)
        return HostKeeper(self._state, operation)

    def pin(self, checkpoint: CheckpointId, inodes: Sequence[InodeRecord]) -> tuple[str, ...]:
        """Keep the inodes of the files that a workload writes, for a restore on this host. Never fails."""
        if InodeMethod.PINNED not in allowed_methods():
            return ()
        try:
            Pins(self._state).pin(checkpoint, inodes, store=self._store)
        except Interrupted:  # the checkpoint is durable
            return ("no inode was pinned: it was interrupted",)
        except CkptError as error:
            return (f"no inode was pinned: {error.message}",)
        return ()


def _is_gone(record: InodeRecord) -> bool:
    return not os.path.lexists(record.path)


def _moved_files(inodes: Iterable[InodeRecord]) -> list[MovedFile]:
    """The files that are there, of the recorded kind, and are others than the workload saw."""
    found = []
    for record in inodes:
        if not is_compared(record):
            continue
        with suppress(OSError):
            status = os.stat(record.path, follow_symlinks=False)
            if not matches(status, record.identity) and kind_of(status.st_mode) is record.kind:
                found.append(MovedFile(path=record.path, record=record, found=status))
    return found
