"""The migrations to this host: what is written down of each, and what has come.

Rule: an agent whose connection is dead may not have noticed: whoever comes anew asks it to end, and waits.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from typing import Final

from ckpt.codec.migration_messages import Offer
from ckpt.errors import Locked, NoSuchTarget, ObjectCorrupt, SameHost
from ckpt.host.jobs import JobRegistry
from ckpt.host.launch import send_signal
from ckpt.host.migrating.source_side import myself
from ckpt.host.migration_records import TARGET_NAME, TargetRecord
from ckpt.host.migrations import Migrations
from ckpt.host.process_table import boot_id
from ckpt.host.received.workload import ReceivedWorkload
from ckpt.host.signals import uninterrupted
from ckpt.model.migration import MigrationId, TargetState
from ckpt.model.migration_moves import Choice, decide_target
from ckpt.model.moves import Policies
from ckpt.units import JobName, Nanoseconds, Pid

_PATIENCE_S: Final = 20.0
_LOOK_AGAIN_S: Final = 0.1


class HostTargetSides:
    """Fits the port `TargetSides`."""

    def __init__(self, state: str) -> None:
        """Keep them below the directory `state`."""
        self._migrations = Migrations(state)
        self._jobs = JobRegistry(state)

    @contextmanager
    def open(self, migration: str) -> Iterator[HostTargetSide]:
        """One of them, locked, whether anything of it is here or not.

        Raises:
            SameHost: it begins here.
            Locked: another process works on it, and does not let go in time.
            ObjectCorrupt: its record cannot be read.
        """
        # Its source holds the lock as long as it waits for an answer.
        if self._migrations.read_source(migration) is not None:
            raise SameHost(migration=migration)
        with ExitStack() as held:
            ends = time.monotonic() + _PATIENCE_S
            while True:
                try:
                    held.enter_context(self._migrations.lock(migration))
                    break
                except Locked:
                    if time.monotonic() > ends:
                        raise
                    self._ask_to_end(migration)
                    time.sleep(_LOOK_AGAIN_S)
            yield HostTargetSide(self._migrations, self._jobs, MigrationId(migration))

    @contextmanager
    def open_if_free(self, migration: str) -> Iterator[HostTargetSide]:
        """The same, where nobody else works on it.

        Raises:
            Locked: somebody does.
            ObjectCorrupt: its record cannot be read.
        """
        with self._migrations.lock(migration):
            yield HostTargetSide(self._migrations, self._jobs, MigrationId(migration))

    def known(self) -> tuple[MigrationId, ...]:
        """Those that are not over."""
        return tuple(record.id for record in self._migrations.targets())

    def _ask_to_end(self, migration: str) -> None:
        with suppress(ObjectCorrupt):
            record = self._migrations.read_target(migration)
            if record is not None and record.boot_id == boot_id() and record.agent.pid != os.getpid():
                send_signal(record.agent, signal.SIGTERM)


class HostTargetSide:
    """Fits the port `TargetSide`. Between changes of state the record on disk and this agree."""

    def __init__(self, migrations: Migrations, jobs: JobRegistry, migration: MigrationId) -> None:
        self._migrations = migrations
        self._jobs = jobs
        self.id = migration
        self._record = migrations.read_target(migration)

    @property
    def path(self) -> str:
        """The record's file."""
        return f"{self._directory}/{TARGET_NAME}"

    @property
    def state(self) -> TargetState | None:
        """The last that was written down; None for nothing."""
        return self._record.state if self._record else None

    @property
    def attempt(self) -> int:
        """The number of the offer that was accepted last; 0 for none."""
        return self._record.attempt if self._record else 0

    @property
    def job(self) -> str:
        """The job's name; "" for none."""
        return self._record.job if self._record else ""

    @property
    def source_host(self) -> str:
        """What the source calls itself; "" for nothing."""
        return self._record.source_host if self._record else ""

    @property
    def policies(self) -> Policies:
        """How it is to be restored."""
        record = self._known
        return Policies(time=record.time, inodes=record.inodes, pids=record.pids, cgroup=record.cgroup)

    def accept(self, offer: Offer) -> None:
        """Write down that it is taken; durable."""
        record = TargetRecord(
            id=self.id,
            state=TargetState.RECEIVING,
            job=offer.job,
            source_host=offer.source_host,
            boot_id=boot_id(),
            agent=myself(),
            began_ns=Nanoseconds(time.time_ns()),
            time=offer.time,
            inodes=offer.inodes,
            pids=offer.pids,
            cgroup=offer.cgroup,
            attempt=offer.attempt,
        )
        with uninterrupted():
            if self._record is None:
                self._migrations.begin(record)
            else:
                self._migrations.save(record)
            self._record = record

    def note(self, state: TargetState) -> None:
        """Write down how far it is; durable when this returns, and as before if this raises."""
        record = replace(self._known, state=state, boot_id=boot_id(), agent=myself())
        # Whoever asks for the state must not find another one than is on the disk.
        with uninterrupted():
            self._migrations.save(record)
            self._record = record

    def decide(self, choice: Choice) -> None:
        """Write down what an operator decides, as the source is gone for ever.

        Raises:
            WrongState: it cannot be decided so.
        """
        record = replace(self._known, state=decide_target(self._known.state, choice))
        with uninterrupted():
            self._migrations.save_decided(record)
            self._record = record

    def tidy(self) -> None:
        """Remove what came, and keep the record."""
        ReceivedWorkload(self._directory).remove()

    def remove(self) -> None:
        """Forget it, with all that came."""
        self._migrations.remove(self.id)
        self._record = None

    def received(self) -> ReceivedWorkload:
        """What came of it."""
        return ReceivedWorkload(self._directory)

    def roots(self) -> tuple[tuple[Pid, ...], str]:
        """The root of the job that came by this migration, and its cgroup; none if it has ended."""
        with suppress(NoSuchTarget, ObjectCorrupt):
            view = self._jobs.look(JobName(self.job or self.id[:12]))
            if view.record.migration == self.id and view.is_alive:
                return (view.record.root.pid,), view.record.cgroup
        return (), "/"

    @property
    def _directory(self) -> str:
        return self._migrations.directory(self.id)

    @property
    def _known(self) -> TargetRecord:
        if self._record is None:
            raise NoSuchTarget(
                kind="migration", name=self.id, remedy="'ckpt recover' names those that are not over."
            )
        return self._record
