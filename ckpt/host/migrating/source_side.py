"""One migration on its source: what is written down of it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Final

from ckpt.errors import NoSuchTarget
from ckpt.host.migration_records import SOURCE_NAME, SourceRecord
from ckpt.host.migrations import Migrations, new_id
from ckpt.host.process_table import ProcessRef, boot_id, process_ref
from ckpt.host.signals import uninterrupted
from ckpt.model.migration import MigrationId, SourceState
from ckpt.model.migration_moves import Choice, decide_source
from ckpt.model.target import Target
from ckpt.units import Nanoseconds, Pid


class SourceSide:
    """Fits the port `SourceRecords`. Between changes of state the record on disk and this agree."""

    def __init__(self, migrations: Migrations, record: SourceRecord, *, is_new: bool) -> None:
        self._migrations = migrations
        self._is_new = is_new
        self.record: SourceRecord = record

    @property
    def id(self) -> MigrationId:
        """Its id."""
        return self.record.id

    @property
    def directory(self) -> str:
        """Where what belongs to it is kept."""
        return self._migrations.directory(self.id)

    @property
    def path(self) -> str:
        """The record's file."""
        return f"{self.directory}/{SOURCE_NAME}"

    @property
    def state(self) -> SourceState:
        """The last that was written down."""
        return self.record.state

    @property
    def attempt(self) -> int:
        """The number of the present attempt."""
        return self.record.attempt

    def begin(self, target: Target) -> None:
        """Write down that it begins, or that a further attempt does; durable."""
        begun = replace(
            self.record,
            job=target.job or "",
            subject=str(target.ref),
            pid=target.roots[0] if target.roots else Pid(0),
            cgroup=target.cgroup,
            boot_id=boot_id(),
            controller=myself(),
        )
        if self._is_new:
            with uninterrupted():
                self._migrations.begin(begun)
                self.record = begun
                self._is_new = False
        else:
            self._save(replace(begun, attempt=begun.attempt + 1))

    def note(self, state: SourceState) -> None:
        """Write down how far it is; durable when this returns, and as before if this raises."""
        self._save(replace(self.record, state=state))

    def decide(self, choice: Choice) -> None:
        """Write down what an operator decides, as the target is gone for ever.

        Raises:
            WrongState: it cannot be decided so.
        """
        record = replace(self.record, state=decide_source(self.record.state, choice))
        with uninterrupted():
            self._migrations.save_decided(record)
            self.record = record

    def remove(self) -> None:
        """Forget it."""
        self._migrations.remove(self.id)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Be the only one who works on it; what is known of it is what is on the disk then.

        Raises:
            Locked: another process works on it.
            NoSuchTarget: another one has finished it.
        """
        with self._migrations.lock(self.id):
            if not self._is_new:
                record = self._migrations.read_source(self.id)
                if record is None:
                    raise NoSuchTarget(kind="migration", name=self.id, remedy="It is over.")
                self.record = record
            yield

    def _save(self, record: SourceRecord) -> None:
        # Whoever asks for the state must not find another one than is on the disk.
        with uninterrupted():
            self._migrations.save(record)
            self.record = record


_NOBODY: Final = ProcessRef(pid=Pid(0), start_ticks=0)


def myself() -> ProcessRef:
    """This process."""
    return process_ref(Pid(os.getpid())) or _NOBODY


def new_source(
    state: str, *, host: str, identity: str, known_hosts: str, remote_ckpt: str, store: str, options: str
) -> SourceSide:
    """A migration that begins; nothing is written down yet."""
    record = SourceRecord(
        id=new_id(),
        state=SourceState.PREPARING,
        job="",
        subject="",
        pid=Pid(0),
        cgroup="",
        host=host,
        identity=identity,
        known_hosts=known_hosts,
        remote_ckpt=remote_ckpt,
        store=store,
        boot_id=boot_id(),
        controller=myself(),
        began_ns=Nanoseconds(time.time_ns()),
        options=options,
    )
    return SourceSide(Migrations(state), record, is_new=True)


def known_source(state: str, migration: str) -> SourceSide:
    """A migration that has begun here.

    Raises:
        NoSuchTarget: there is none of this id.
        ObjectCorrupt: its record cannot be read.
    """
    migrations = Migrations(state)
    record = migrations.read_source(migration)
    if record is None:
        raise NoSuchTarget(
            kind="migration", name=migration, remedy="'ckpt recover' names those that are not over."
        )
    return SourceSide(migrations, record, is_new=False)


def known_sources(state: str) -> tuple[SourceSide, ...]:
    """All migrations away from this host that are not over."""
    migrations = Migrations(state)
    return tuple(SourceSide(migrations, record, is_new=False) for record in migrations.sources())
