"""Checkpoint a workload: freeze, dump every tree under one freeze, thaw, store; kill only what is durable.

Rules:
  D1  Nothing slow happens between freeze and thaw but CRIU itself: digests, compression and fsync come after.
  D2  Every undo is registered, and noted in the journal, before the step that it undoes.
  D3  A workload is killed only when its checkpoint is durable in the store.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final

from ckpt.errors import DumpFailed, NoSuchTarget, NotNow, ObjectMissing, WrongState
from ckpt.flow.ports import (
    Clock,
    Dumper,
    FileSaver,
    FileSelection,
    Freezer,
    FrozenView,
    Inodes,
    Inspector,
    Jobs,
    Operation,
    Operations,
    Store,
    StoreWriter,
    Survey,
    Targets,
    TreeDump,
    Volumes,
)
from ckpt.flow.undo import Undo
from ckpt.flow.volumes import outside_volumes
from ckpt.model.checkpoint import (
    CarriedFile,
    Checkpoint,
    DumpOptions,
    DumpStatistics,
    ImageSet,
    SavedFile,
    StoredFile,
    Volume,
)
from ckpt.model.reports import DumpReport
from ckpt.model.target import Target, TargetRef
from ckpt.model.workload import ExternalMount, OutsideFile, Tree
from ckpt.units import CheckpointId, JobName, Nanoseconds, Pid, Tag

ATTEMPTS_MAX: Final = 6
"""How often a dump begins anew when the freeze hit the workload at a moment that cannot be dumped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DumpCall:
    """What the user asked for. `job` None takes the target's own name, if it has one.

    `with_files` are files, and directories with all files in them, that are kept as they are at the freeze. `force`
    tries also what the preflight rules say will fail.
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


def dump(call: DumpCall, ports: DumpPorts) -> DumpReport:
    """Take a checkpoint of the target and store it.

    Raises:
        NoSuchTarget, CannotCheckpoint, Locked, Usage: nothing was touched.
        FreezeTimeout, DumpFailed, StoreError, NoSpace: the workload runs on, and nothing half-written remains.
    """
    began = ports.clock.stopwatch()
    target = ports.targets.resolve(call.target)
    job = call.job or target.job
    parent = _newest_of(job, ports.store)
    with ports.targets.lock(target), ports.store.writer(parent) as writer, Undo("the dump") as undo:
        operation = ports.operations.begin(f"dump of {target.ref}")
        undo.always("end the operation", operation.end)
        selection = ports.saver.select(call.with_files, operation)
        undo.always("drop the copies of files", selection.drop)
        freezer = ports.targets.freezer(target, operation)
        undo.always("put the processes back", freezer.release)
        undo.always("thaw the workload", freezer.thaw)
        operation.guard()
        freezer.gather()

        one = _Dump(call, ports, target, operation, freezer, selection, writer, job, parent)
        one.take()
        if one.kept is None:
            if not call.stop:
                one.let_go()
            one.keep()
        assert one.kept is not None
        if call.stop:
            freezer.kill()
            operation.note_phase("killed")
            if target.job is not None:
                ports.jobs.mark_stopped(target.job, one.kept.id)
    return DumpReport(
        id=one.kept.id,
        checkpoint=one.kept.checkpoint,
        total_ns=Nanoseconds(ports.clock.stopwatch() - began),
        new_bytes=writer.new_bytes,
        stored_bytes=writer.stored_bytes,
        stopped=call.stop,
        warnings=one.warnings,
    )


def _newest_of(job: JobName | None, store: Store) -> CheckpointId | None:
    """The job's newest checkpoint in this store: the parent of the next one."""
    if job is None:
        return None
    try:
        return store.resolve(f"{job}@latest")
    except ObjectMissing:
        return None


class _RootEndedError(Exception):
    """The root that CRIU was pointed at was gone when the freeze came."""


@dataclass(slots=True)
class _TreeImages:
    """What the dump of one tree left in the staging directory."""

    tree: Tree
    directory: str
    statistics: DumpStatistics | None = None
    carried: tuple[tuple[CarriedFile, str], ...] = ()


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
    target: Target
    operation: Operation
    freezer: Freezer
    selection: FileSelection
    writer: StoreWriter
    job: JobName | None
    parent: CheckpointId | None

    kept: _Kept | None = None
    warnings: tuple[str, ...] = ()
    view: FrozenView | None = None
    images: list[_TreeImages] = field(default_factory=list)
    mounts: dict[Pid, tuple[ExternalMount, ...]] = field(default_factory=dict)
    outside: tuple[OutsideFile, ...] = ()
    volumes: tuple[tuple[Volume, str], ...] = ()
    froze_at: Nanoseconds = Nanoseconds(0)
    frozen_ns: Nanoseconds = Nanoseconds(0)
    dump_ns: Nanoseconds = Nanoseconds(0)

    @property
    def _hold(self) -> bool:
        """Whether CRIU itself must kill the tree.

        Connections that are to be restored may not see the FIN of a killed task: CRIU keeps them locked only
        if it ends the tree itself, so the checkpoint is made durable while CRIU waits.
        """
        return self.call.stop and self.call.options.tcp_established

    def take(self) -> None:
        """Freeze the workload and dump every tree of it under that one freeze."""
        for attempt in range(ATTEMPTS_MAX):
            survey = self.ports.inspector.survey(self.target, self.call.options, force=self.call.force)
            self.warnings = survey.warnings
            self.outside = self.ports.dumper.outside_files(survey.trees)
            self.mounts = {tree.root: self.ports.dumper.external_mounts(tree) for tree in survey.trees}
            started = [self.ports.dumper.start(self.operation, tree) for tree in survey.trees]
            try:
                self.ports.volumes.write_out(self.target)
                self.freezer.prepare()
                self._dump_trees(survey, started, patient=attempt < ATTEMPTS_MAX - 1)
            except NotNow:
                self.freezer.thaw()
                if attempt == ATTEMPTS_MAX - 1:
                    raise
            except _RootEndedError:
                self.freezer.thaw()
                if attempt == ATTEMPTS_MAX - 1:
                    raise WrongState(
                        subject=str(self.target.ref),
                        state="replacing its root process all the time",
                        operation="a dump",
                        needed="to keep it for a moment",
                    ) from None
            else:
                return
            finally:
                for tree_dump in started:
                    tree_dump.close()

    def let_go(self) -> None:
        """Let the workload go on."""
        self.ports.dumper.let_go(self._view, self.freezer.thaw)
        self.thawed()

    def thawed(self) -> None:
        """Note that the last task goes on."""
        self.frozen_ns = Nanoseconds(self.ports.clock.stopwatch() - self.froze_at)
        self.operation.note_phase("thawed")

    def keep(self) -> None:
        """Store what was dumped; durable when this returns."""
        view, ports = self._view, self.ports
        for images in self.images:
            offsets = images.tree.time_offsets
            ports.dumper.set_instant(
                images.directory,
                view,
                Nanoseconds(view.clocks.monotonic_ns + offsets.monotonic_ns),
                Nanoseconds(view.clocks.boottime_ns + offsets.boottime_ns),
            )
        checkpoint = self._describe(view)
        self.operation.note_phase("stored")
        self.kept = _Kept(id=self.writer.commit(checkpoint), checkpoint=checkpoint)
        self.operation.note_phase("durable")
        self.warnings += ports.inodes.pin(
            self.kept.id, outside_volumes(checkpoint.inodes, checkpoint.volumes)
        )
        for tag in self.call.tags:
            ports.store.tag(self.kept.id, tag)

    @property
    def _view(self) -> FrozenView:
        assert self.view is not None
        return self.view

    def _dump_trees(self, survey: Survey, started: list[TreeDump], *, patient: bool) -> None:
        first_root = survey.trees[0].root

        def freeze() -> None:
            self._freeze(survey, patient=patient)
            if first_root not in [tree.root for tree in self._view.trees]:
                raise _RootEndedError

        self._dump_tree(first_root, started[0], freeze)
        others = [tree for tree in self._view.trees if tree.root != first_root]
        for index, tree in enumerate(others, start=1):
            if index == len(started):
                started.append(self.ports.dumper.start(self.operation, tree))
            self._dump_tree(tree.root, started[index], self._still_frozen)
        if not self._hold:
            self._still_frozen()
            self._copy_volumes()
        self.operation.note_phase("dumped")

    def _freeze(self, survey: Survey, *, patient: bool) -> None:
        self.operation.note_phase("freezing")
        survey = self.ports.inspector.watch_waits(survey)
        self.froze_at = self.ports.clock.stopwatch()
        self.freezer.freeze(self.call.freeze_timeout)
        self.operation.note_phase("frozen")
        self.view = self.ports.inspector.confirm(survey, self.freezer.cgroup, patient=patient)
        self.warnings += self.view.warnings
        if not self.view.trees:
            raise NoSuchTarget(
                kind="process in", name=str(self.target.ref), remedy="It ended while it was being frozen."
            )
        if self._hold and len(self.view.trees) > 1:
            raise DumpFailed(
                cause=f"{len(self.view.trees)} trees with --stop and --tcp-established: their connections "
                "cannot all stay locked while the trees end one after another",
                remedy="Checkpoint without --tcp-established, or each tree by --pid.",
            )

    def _still_frozen(self) -> None:
        # CRIU thaws the cgroup under ptrace and freezes it again; had it failed to, tasks of the other
        # trees would have run on, and the trees would not be of one instant.
        if not self.freezer.is_frozen():
            raise DumpFailed(
                cause="the cgroup did not stay frozen under CRIU, so the trees are not of one instant",
                remedy="Try again; if it happens again, run 'ckpt doctor' and report CRIU's version.",
            )

    def _dump_tree(self, root: Pid, tree_dump: TreeDump, before: Callable[[], None]) -> None:
        directory = self.operation.directory(str(root))

        clock = self.ports.clock
        began = clock.stopwatch()

        def stopped() -> None:
            self.dump_ns = Nanoseconds(self.dump_ns + clock.stopwatch() - began)
            tree = next(tree for tree in self._view.trees if tree.root == root)
            images = _TreeImages(tree=tree, directory=directory)
            images.carried = self.ports.dumper.carry(directory, self.operation.staging, self._view)
            if not self.images:  # all trees stand still at one instant: once is enough
                self.selection.take()
                self.warnings += self.selection.warnings
            self.images.append(images)
            self.operation.note_phase("written")
            if self._hold:
                self._copy_volumes()
                self.thawed()
                self.keep()

        statistics = tree_dump.run(
            root=root,
            images=directory,
            cgroup=self.freezer.cgroup,
            options=self.call.options,
            external_mounts=self.mounts.get(root, ()),
            outside_files=self.outside,
            leave_running=not self._hold,
            before=before,
            stopped=stopped,
        )
        self.images[-1].statistics = statistics

    def _copy_volumes(self) -> None:
        # After CRIU: it makes and removes links in the workload's directories.
        self.volumes = self.ports.volumes.copy_frozen(self.target, self.operation)
        if self.volumes:
            self.operation.note_phase("copied")

    def _describe(self, view: FrozenView) -> Checkpoint:
        ports = self.ports
        workload = ports.inspector.describe(view, self.target)
        workload = replace(
            workload,
            external_mounts=tuple(
                {mount.key: mount for mounts in self.mounts.values() for mount in mounts}.values()
            ),
            outside_files=self.outside,
        )
        if self.call.stop:
            self.frozen_ns = Nanoseconds(ports.clock.stopwatch() - self.froze_at)
        return Checkpoint(
            job=self.job,
            message=self.call.message,
            created_ns=view.clocks.realtime_ns,
            parent=self.parent,
            frozen_ns=self.frozen_ns,
            dump_ns=self.dump_ns,
            host=ports.inspector.host_facts(),
            clocks=view.clocks,
            timers=tuple(
                timer for images in self.images for timer in ports.dumper.timers(images.directory, view)
            ),
            waits=view.waits,
            settings=view.settings,
            options=self.call.options,
            workload=workload,
            image_sets=tuple(self._store_images(images) for images in self.images),
            inodes=ports.inspector.inodes(view),
            carried_files=tuple(
                replace(
                    carried,
                    content=replace(
                        self.writer.add_file(copy, carried.content.name), mode=carried.content.mode
                    ),
                )
                for images in self.images
                for carried, copy in images.carried
            ),
            saved_files=self._store_saved(),
            saved_directories=self.selection.directories,
            volumes=tuple(
                replace(volume, content=self.writer.add_file(copy, volume.content.name))
                for volume, copy in self.volumes
            ),
        )

    def _store_saved(self) -> tuple[SavedFile, ...]:
        stored: dict[str, StoredFile] = {}
        for saved, copy in self.selection.files:
            if copy not in stored:
                stored[copy] = replace(
                    self.writer.add_file(copy, saved.content.name), mode=saved.content.mode
                )
        return tuple(replace(saved, content=stored[copy]) for saved, copy in self.selection.files)

    def _store_images(self, images: _TreeImages) -> ImageSet:
        names = self.ports.dumper.image_files(images.directory)
        addresses = self.ports.dumper.page_addresses(images.directory)
        return ImageSet(
            root=images.tree.root,
            files=tuple(
                self.writer.add_file(f"{images.directory}/{name}", name, addresses.get(name, ()))
                for name in names
            ),
            statistics=images.statistics,
        )
