"""The records of migrations on this host: how far each is, and what it takes to go on after a crash.

    STATE/migrations/ID/source.json    this host is the source
                        target.json    this host is the target
                        …              what else belongs to it: spool, images

Rules:
- A record is replaced as a whole, and durable when save() returns: its rename is the decision of this side.
- What is read under lock() is durable: one that its writer did not come to sync is synced first, for otherwise
  somebody could act on what a power cut then takes back.
- A migration is removed by renaming its directory: it is there with its record and its images, or not at all.
- A host is never both sides of one migration.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from typing import Any, Final

from ckpt.errors import CkptError, NoSpace, NoSuchTarget, ObjectCorrupt, OsRefused, WrongState
from ckpt.host.journal import remove_file
from ckpt.host.locks import exclusive
from ckpt.host.migration_records import (
    SOURCE_NAME,
    TARGET_NAME,
    SourceRecord,
    TargetRecord,
    encode,
    read_record,
    sync,
)
from ckpt.model.migration import MigrationId
from ckpt.model.migration_moves import check_source_move, check_target_move

_ID: Final = re.compile(r"[0-9a-f]{16}", re.ASCII)
_GONE: Final = re.compile(r"\.[0-9a-f]{16}\.gone", re.ASCII)


def new_id() -> MigrationId:
    """An id that no other migration has."""
    return MigrationId(secrets.token_hex(8))


def check_id(text: str) -> MigrationId:
    """The id, if a migration may have it.

    Raises:
        NoSuchTarget: it may not.
    """
    if _ID.fullmatch(text) is None:
        raise NoSuchTarget(
            kind="migration",
            name=repr(text[:64]),
            remedy="An id has 16 hexadecimal digits; 'ckpt recover' lists them.",
        )
    return MigrationId(text)


class Migrations:
    """The migrations of this host."""

    def __init__(self, state: str) -> None:
        """Keep them below the directory `state`, which is made when the first one begins."""
        self._migrations = f"{state}/migrations"
        self._locks = f"{state}/locks"

    def directory(self, migration: str) -> str:
        """The migration's directory, whether it exists or not.

        Raises:
            NoSuchTarget: no migration can have this id.
        """
        return f"{self._migrations}/{check_id(migration)}"

    @contextlib.contextmanager
    def lock(self, migration: str) -> Iterator[None]:
        """Be the only controller or agent that works on this migration; what is read meanwhile is durable.

        Raises:
            Locked: another process works on it; names its pid.
            NoSpace, OsRefused: the lock, or what is there, cannot be written.
        """
        directory = self.directory(migration)
        with exclusive(self._locks, [f"migration-{migration}"], subject=f"Migration {migration}"):
            try:
                for name in (SOURCE_NAME, TARGET_NAME):
                    remove_file(f"{directory}/{name}.new")
                for each in (
                    f"{directory}/{SOURCE_NAME}",
                    f"{directory}/{TARGET_NAME}",
                    directory,
                    self._migrations,
                ):
                    if os.path.exists(each):
                        sync(each)
            except OSError as error:
                raise _refused(directory, error) from error
            yield

    def begin(self, record: SourceRecord | TargetRecord) -> None:
        """Write down a migration that is new to this host; durable.

        Raises:
            WrongState: this host knows it already, perhaps as the other side.
            NoSpace, OsRefused: it cannot be written.
        """
        directory = self.directory(record.id)
        for name in (SOURCE_NAME, TARGET_NAME):
            if os.path.lexists(f"{directory}/{name}"):
                raise WrongState(
                    subject=f"Migration {record.id}",
                    state=f"known here ({directory}/{name})",
                    operation="beginning it",
                    needed="new to this host",
                    remedy="A workload cannot be migrated to the host where it is.",
                )
        try:
            os.makedirs(directory, mode=0o700, exist_ok=True)
        except OSError as error:
            raise _refused(self._migrations, error) from error
        self.save(record)
        try:
            # The names of the directories, too, survive a crash only when those that hold them are synced.
            sync(self._migrations)
            sync(os.path.dirname(self._migrations))
        except OSError as error:
            raise _refused(self._migrations, error) from error

    def save(self, record: SourceRecord | TargetRecord) -> None:
        """Replace the record; durable when this returns, and as it was if this raises.

        Raises:
            WrongState: the migration cannot go to this state from the one that it is in.
            ObjectCorrupt: the former record cannot be read.
            NoSpace, OsRefused: it cannot be written.
        """
        if isinstance(record, SourceRecord):
            source = self.read_source(record.id)
            check_source_move(source.state if source else None, record.state)
        else:
            target = self.read_target(record.id)
            check_target_move(target.state if target else None, record.state)
        self.save_decided(record)

    def save_decided(self, record: SourceRecord | TargetRecord) -> None:
        """As save(), to any state: for what an operator decides (decide_source() and decide_target() say what)."""
        directory = self.directory(record.id)
        path = f"{directory}/{SOURCE_NAME if isinstance(record, SourceRecord) else TARGET_NAME}"
        former = _bytes_of(path)
        try:
            _replace(path, encode(record))
        except OSError as error:
            # It may have its new name already, and whoever called goes on as if it had not.
            with contextlib.suppress(OSError):
                if former is not None and _bytes_of(path) != former:
                    _replace(path, former)
            raise _refused(directory, error) from error

    def read_source(self, migration: str) -> SourceRecord | None:
        """What this host has written down as the source; None if it is not.

        Raises:
            ObjectCorrupt: it cannot be read.
        """
        return read_record(f"{self.directory(migration)}/{SOURCE_NAME}", SourceRecord)

    def read_target(self, migration: str) -> TargetRecord | None:
        """What this host has written down as the target; None if it is not.

        Raises:
            ObjectCorrupt: it cannot be read.
        """
        return read_record(f"{self.directory(migration)}/{TARGET_NAME}", TargetRecord)

    def ids(self) -> tuple[MigrationId, ...]:
        """All that this host has something of, whether it can be read or not."""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            return tuple(
                MigrationId(name) for name in sorted(os.listdir(self._migrations)) if _ID.fullmatch(name)
            )
        return ()

    def sources(self) -> tuple[SourceRecord, ...]:
        """The migrations away from this host; damaged() has those that cannot be read."""
        return tuple(found for each in self.ids() if (found := _readable(self.read_source, each)) is not None)

    def targets(self) -> tuple[TargetRecord, ...]:
        """The migrations to this host; damaged() has those that cannot be read."""
        return tuple(found for each in self.ids() if (found := _readable(self.read_target, each)) is not None)

    def damaged(self) -> tuple[CkptError, ...]:
        """What is wrong with the records that cannot be read: nobody may act on these migrations."""
        problems: list[CkptError] = []
        for each in self.ids():
            for read in (self.read_source, self.read_target):
                try:
                    read(each)
                except CkptError as error:
                    problems.append(error)
        return tuple(problems)

    def remove(self, migration: str) -> None:
        """Forget the migration and remove all that belongs to it; durable, and safe to repeat.

        Raises:
            OsRefused: it cannot be removed.
        """
        directory = self.directory(migration)
        gone = f"{self._migrations}/.{migration}.gone"
        try:
            shutil.rmtree(gone, ignore_errors=True)
            with contextlib.suppress(FileNotFoundError):
                os.rename(directory, gone)
                sync(self._migrations)
            shutil.rmtree(gone, ignore_errors=True)
        except OSError as error:
            raise _refused(directory, error) from error

    def sweep(self) -> None:
        """Remove what is left of migrations that were being removed, or never came to begin."""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            for name in sorted(os.listdir(self._migrations)):
                if _GONE.fullmatch(name):
                    shutil.rmtree(f"{self._migrations}/{name}", ignore_errors=True)
                elif _ID.fullmatch(name):
                    with contextlib.suppress(OSError):  # it has something in it
                        os.rmdir(f"{self._migrations}/{name}")


def _readable(read: Any, migration: MigrationId) -> Any:
    with contextlib.suppress(ObjectCorrupt):
        return read(migration)
    return None


def _bytes_of(path: str) -> bytes | None:
    with contextlib.suppress(OSError), open(path, "rb") as stream:
        return stream.read()
    return None


def _replace(path: str, content: bytes) -> None:
    try:
        with open(path + ".new", "wb", opener=_private) as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.rename(path + ".new", path)
    except OSError:
        with contextlib.suppress(OSError):
            remove_file(path + ".new")
        raise
    sync(os.path.dirname(path))


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


def _refused(place: str, error: OSError) -> NoSpace | OsRefused:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoSpace(place=place, available_bytes=0, needed_bytes=4096, option="CKPT_STATE")
    return OsRefused(
        operation="write the record of a migration in",
        subject=place,
        reason=error.strerror or str(error),
        remedy="Make it writable, or set CKPT_STATE to a directory that is.",
    )
