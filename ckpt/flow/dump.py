"""Checkpoint a workload: freeze, dump every tree under one freeze, thaw, store; kill only what is durable.

Rules:
  D1  Nothing slow happens between freeze and thaw but CRIU itself: digests, compression and fsync come after.
  D2  Every undo is registered, and noted in the journal, before the step that it undoes.
  D3  A workload is killed only when its checkpoint is durable in the store.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, Protocol

from ckpt.errors import FormatUnknown, ObjectCorrupt, ObjectMissing
from ckpt.flow.ports import (
    Clock,
    Dumper,
    FileSaver,
    Inodes,
    Inspector,
    Jobs,
    Networks,
    Operations,
    Store,
    StoreWriter,
    Targets,
    Volumes,
)
from ckpt.flow.snapshot import Keeping, Snapshot, SnapshotPorts, Wanted
from ckpt.flow.undo import Undo
from ckpt.flow.volumes import outside_volumes
from ckpt.model.checkpoint import Checkpoint, DumpOptions, GroupInstant, SavedFile
from ckpt.model.reports import DumpReport
from ckpt.model.target import TargetRef
from ckpt.units import CheckpointId, JobName, Nanoseconds, Tag

_ONE_TREE: Final = "with --stop and --tcp-established: their connections cannot all stay locked while the trees end one after another"


@dataclass(frozen=True, slots=True, kw_only=True)
class DumpCall:
    """What the user asked for. `job` None takes the target's own name, if it has one.

    `with_files` are files, and directories with all files in them, that are kept as they are at the freeze. So are
    `appended`, files that only ever grow, as a log does: they are read after the thaw, up to where they ended at the
    freeze, and one that is missing is none. `force` tries also what the preflight rules say will fail. `froze` is
    called when all stand still, before any file is taken.
    """

    target: TargetRef
    job: JobName | None
    tags: tuple[Tag, ...]
    message: str
    stop: bool
    options: DumpOptions
    freeze_timeout: Nanoseconds
    with_files: tuple[str, ...] = ()
    force: bool = False
    appended: tuple[str, ...] = ()
    froze: Callable[[], None] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DumpPorts:
    """The outside things that a dump needs."""

    clock: Clock
    operations: Operations
    targets: Targets
    inspector: Inspector
    inodes: Inodes
    dumper: Dumper
    saver: FileSaver
    store: Store
    jobs: Jobs
    volumes: Volumes
    networks: Networks

    @property
    def snapshot(self) -> SnapshotPorts:
        """What the snapshot needs of them."""
        return SnapshotPorts(
            clock=self.clock, inspector=self.inspector, dumper=self.dumper, volumes=self.volumes
        )


class Company(Protocol):
    """Other workloads that are dumped at the same instant: each call returns when all have come as far, or raises."""

    @property
    def instant(self) -> GroupInstant:
        """What the checkpoint is to say of it."""

    def freezes(self) -> None:
        """All is ready, and everything runs yet."""

    def stands_still(self, since: Nanoseconds) -> None:
        """Nothing runs, by the clock for durations since that instant."""

    def dumped(self) -> None:
        """All images are written; the connections are still locked."""

    def taken(self) -> None:
        """All that must be read while it stands still has been."""

    def durable(self) -> None:
        """The checkpoint is durable; with --stop everything stands still yet."""


def dump(call: DumpCall, ports: DumpPorts, company: Company | None = None) -> DumpReport:
    """Take a checkpoint of the target and store it.

    Args:
        call: What the user asked for.
        ports: The outside things.
        company: Others that are dumped at the same instant. If one of them cannot be, the workload runs on; a
            checkpoint that is durable by then stays.

    Raises:
        Exception: what `company` raised.
        NoSuchTarget, CannotCheckpoint, Locked, Usage: nothing was touched.
        FreezeTimeout, DumpFailed, StoreError, NoSpace: the workload runs on, and nothing half-written remains.
    """
    began = ports.clock.stopwatch()
    target = ports.targets.resolve(call.target)
    job = call.job or target.job
    parent = _newest_of(job, ports.store)
    created_after = _created(parent, ports.store)
    with ports.targets.lock(target), ports.store.writer(parent) as writer, Undo("the dump") as undo:
        operation = ports.operations.begin(f"dump of {target.ref}")
        undo.always("end the operation", operation.end)
        selection = ports.saver.select(call.with_files, operation, appended=call.appended)
        undo.always("drop the copies of files", selection.drop)
        freezer = ports.targets.freezer(target, operation)
        undo.always("put the processes back", freezer.release)
        undo.always("thaw the workload", freezer.thaw)
        undo.on_failure("join its network again", lambda: ports.networks.attach(target, operation))
        operation.guard()
        freezer.gather()

        snapshot = Snapshot(
            Wanted(options=call.options, freeze_timeout=call.freeze_timeout, force=call.force),
            ports.snapshot,
            target,
            operation,
            freezer,
            selection,
        )
        one = _Dump(call, ports, snapshot, writer, job, parent, company, created_after)
        one.take()
        if one.kept is None:
            if not call.stop:
                snapshot.let_go()
            one.keep()
        assert one.kept is not None
        if call.stop:
            freezer.kill()
            operation.note_phase("killed")
            if call.options.tcp_established:
                ports.networks.remove(target)
            if target.job is not None:
                ports.jobs.mark_stopped(target.job, one.kept.id, one.connection_locks)
    return DumpReport(
        id=one.kept.id,
        checkpoint=one.kept.checkpoint,
        total_ns=Nanoseconds(ports.clock.stopwatch() - began),
        new_bytes=writer.new_bytes,
        stored_bytes=writer.stored_bytes,
        stopped=call.stop,
        warnings=(*snapshot.warnings, *one.warnings),
    )


def _newest_of(job: JobName | None, store: Store) -> CheckpointId | None:
    """The job's newest checkpoint in this store: the parent of the next one."""
    if job is None:
        return None
    try:
        return store.resolve(f"{job}@latest")
    except ObjectMissing:
        return None


def _created(parent: CheckpointId | None, store: Store) -> Nanoseconds:
    """When the parent was taken; 0 where there is none that can be read."""
    if parent is None:
        return Nanoseconds(0)
    try:
        return store.load(parent).checkpoint.created_ns
    except (ObjectMissing, ObjectCorrupt, FormatUnknown):
        return Nanoseconds(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kept:
    """A checkpoint that is durable."""

    id: CheckpointId
    checkpoint: Checkpoint


@dataclass(slots=True)
class _Dump:
    """One dump on its way: take() freezes and dumps, keep() stores."""

    call: DumpCall
    ports: DumpPorts
    snapshot: Snapshot
    writer: StoreWriter
    job: JobName | None
    parent: CheckpointId | None
    company: Company | None
    created_after: Nanoseconds

    kept: _Kept | None = None
    warnings: tuple[str, ...] = ()

    def take(self) -> None:
        """Freeze and dump; where CRIU itself must kill the tree, keep it, too.

        Connections that are to be restored may not see the FIN of a killed task: CRIU keeps them locked only
        if it ends the tree itself, so the checkpoint is made durable while CRIU waits.
        """
        if self.call.stop and self.call.options.tcp_established:
            self.snapshot.take(
                held=self._keep_held,
                one_tree=_ONE_TREE,
                froze=self._froze,
                freezes=self.company.freezes if self.company is not None else None,
                dumped=self.company.dumped if self.company is not None else None,
            )
        else:
            self.snapshot.take(
                froze=self._froze,
                freezes=self.company.freezes if self.company is not None else None,
                dumped=self.company.dumped if self.company is not None else None,
            )
            if self.company is not None:
                self.company.taken()

    @property
    def connection_locks(self) -> tuple[str, ...]:
        """The locks that are left where CRIU has killed the tree."""
        if not self.call.options.tcp_established:
            return ()
        return tuple(
            self.ports.dumper.connection_lock(images) for _, images in self.snapshot.image_directories
        )

    def keep(self) -> None:
        """Store what was dumped; durable when this returns."""
        snapshot, ports = self.snapshot, self.ports
        snapshot.set_instant()
        if self.call.stop:
            snapshot.count_frozen()
        checkpoint = snapshot.describe(
            Keeping(
                add_image=lambda _root, path, name, addresses: self.writer.add_file(path, name, addresses),
                add_file=self.writer.add_file,
            ),
            job=self.job,
            message=self.call.message,
            parent=self.parent,
        )
        checkpoint = replace(
            checkpoint,
            # A clock that was set back must not make it older than what was before it: that decides which one a job
            # goes on from, and which are removed.
            created_ns=max(checkpoint.created_ns, Nanoseconds(self.created_after + 1)),
            saved_files=(*checkpoint.saved_files, *self._keep_appended()),
            group=self.company.instant if self.company is not None else None,
        )
        snapshot.operation.note_phase("stored")
        self.kept = _Kept(id=self.writer.commit(checkpoint), checkpoint=checkpoint)
        snapshot.operation.note_phase("durable")
        self.warnings += ports.inodes.pin(
            self.kept.id, outside_volumes(checkpoint.inodes, checkpoint.volumes)
        )
        for tag in self.call.tags:
            ports.store.tag(self.kept.id, tag)
        if self.company is not None:
            self.company.durable()

    def _froze(self) -> None:
        if self.company is not None:
            self.company.stands_still(self.snapshot.stood_still_at)
        if self.call.froze is not None:
            self.call.froze()

    def _keep_appended(self) -> tuple[SavedFile, ...]:
        kept = []
        for file, read in self.snapshot.selection.appended():
            content = self.writer.add_stream(
                read, name=file.content.name, size_bytes=file.content.size_bytes, mode=file.content.mode
            )
            kept.append(replace(file, content=content))
        self.warnings += self.snapshot.selection.late_warnings
        return tuple(kept)

    def _keep_held(self) -> None:
        if self.company is not None:
            self.company.taken()
        self.snapshot.thawed()
        self.keep()
        # What a peer sends again is answered with a reset by a network of the workload's own that goes: the locks in it
        # go before its interface.
        self.ports.networks.detach(self.snapshot.target, self.snapshot.operation)
