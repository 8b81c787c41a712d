"""One workload at one instant: freeze, dump every tree under that one freeze, describe what was dumped, thaw.

Rules:
  D1  Nothing slow happens between freeze and thaw but CRIU itself: digests, compression and fsync come after.
  D4  A moment that cannot be dumped is met by thawing and trying again, a few times.
Who takes it (dump, migrate) begins the operation and registers the undos.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final

from ckpt.errors import DumpFailed, NoSuchTarget, NotNow, WrongState
from ckpt.flow.ports import (
    Clock,
    Dumper,
    FileSelection,
    Freezer,
    FrozenView,
    Inspector,
    Operation,
    Survey,
    TreeDump,
    Volumes,
)
from ckpt.model.checkpoint import (
    AddressRun,
    CarriedFile,
    Checkpoint,
    DumpOptions,
    DumpStatistics,
    ImageSet,
    SavedFile,
    StoredFile,
    Volume,
)
from ckpt.model.network import Network
from ckpt.model.target import Target
from ckpt.model.workload import ExternalMount, OutsideFile, Tree
from ckpt.units import CheckpointId, JobName, Nanoseconds, Pid

ATTEMPTS_MAX: Final = 6
"""How often a dump begins anew when the freeze hit the workload at a moment that cannot be dumped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """How it is to be taken: `force` tries also what the preflight rules say will fail.

    `lazy` leaves private anonymous memory in the tasks; the images do not have it.
    """

    options: DumpOptions
    freeze_timeout: Nanoseconds
    force: bool
    lazy: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotPorts:
    """The outside things that it needs."""

    clock: Clock
    inspector: Inspector
    dumper: Dumper
    volumes: Volumes


@dataclass(frozen=True, slots=True, kw_only=True)
class Keeping:
    """Who keeps the files of a snapshot: a store, or another host."""

    add_image: Callable[[Pid, str, str, tuple[AddressRun, ...]], StoredFile]
    """Of the tree with this root, the file at this path, with this name, and the addresses of its pages."""
    add_file: Callable[[str, str], StoredFile]
    """Another file at this path, with this name."""


class _RootEndedError(Exception):
    """The root that CRIU was pointed at was gone when the freeze came."""


@dataclass(slots=True)
class _TreeImages:
    """What the dump of one tree left in the staging directory."""

    tree: Tree
    directory: str
    statistics: DumpStatistics | None = None
    carried: tuple[tuple[CarriedFile, str], ...] = ()


@dataclass(slots=True)
class Snapshot:
    """One snapshot on its way: take() freezes and dumps, describe() gives it as a checkpoint."""

    wanted: Wanted
    ports: SnapshotPorts
    target: Target
    operation: Operation
    freezer: Freezer
    selection: FileSelection

    warnings: tuple[str, ...] = ()
    frozen_ns: Nanoseconds = Nanoseconds(0)
    froze_at: Nanoseconds = Nanoseconds(0)
    stood_still_at: Nanoseconds = Nanoseconds(0)
    _view: FrozenView | None = None
    _images: list[_TreeImages] = field(default_factory=list)
    _mounts: dict[Pid, tuple[ExternalMount, ...]] = field(default_factory=dict)
    _outside: tuple[OutsideFile, ...] = ()
    _networks: tuple[Network, ...] = ()
    _volumes: tuple[tuple[Volume, str], ...] = ()
    _dump_ns: Nanoseconds = Nanoseconds(0)

    def take(
        self,
        *,
        held: Callable[[], None] | None = None,
        one_tree: str = "",
        froze: Callable[[], None] | None = None,
        freezes: Callable[[], None] | None = None,
        dumped: Callable[[], None] | None = None,
    ) -> None:
        """Freeze the workload and dump every tree of it under that one freeze.

        Args:
            held: Called while CRIU still holds the last tree, all images being written: if it returns, CRIU kills
                that tree, with its connections locked; if it raises, all go on. Without, all stand frozen at the end.
            one_tree: With `held`, why there may be but one tree; "" lets there be several.
            froze: Called when all stand still, before CRIU begins.
            freezes: Called before any of them stands still, when all else is ready.
            dumped: Called when all images are written, while CRIU still has the last tree and its connections locked.

        Raises:
            CannotCheckpoint, FreezeTimeout, DumpFailed, NoSuchTarget: the workload is as it was, but for a freeze.
            Exception: what `held` raised.
        """
        for attempt in range(ATTEMPTS_MAX):
            survey = self.ports.inspector.survey(self.target, self.wanted.options, force=self.wanted.force)
            self.warnings = survey.warnings
            self._outside = self.ports.dumper.outside_files(survey.trees)
            self._networks = self.ports.dumper.networks(survey.trees)
            self._mounts = {tree.root: self.ports.dumper.external_mounts(tree) for tree in survey.trees}
            started = [self._start(tree) for tree in survey.trees]
            try:
                self.ports.volumes.write_out(self.target)
                self.freezer.prepare()
                hold = _Hold(held=held, one_tree=one_tree, froze=froze, freezes=freezes, dumped=dumped)
                self._dump_trees(survey, started, hold, patient=attempt < ATTEMPTS_MAX - 1)
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
        self.ports.dumper.let_go(self.view, self.freezer.thaw)
        self.thawed()

    def thawed(self) -> None:
        """Note that the last task goes on."""
        self.count_frozen()
        self.operation.note_phase("thawed")

    def count_frozen(self) -> None:
        """Let it have been frozen until now."""
        self.frozen_ns = Nanoseconds(self.ports.clock.stopwatch() - self.froze_at)

    @property
    def view(self) -> FrozenView:
        """What was read under the freeze."""
        assert self._view is not None
        return self._view

    @property
    def image_directories(self) -> tuple[tuple[Pid, str], ...]:
        """The root of each tree that was dumped, and the directory of its images."""
        return tuple((images.tree.root, images.directory) for images in self._images)

    def set_instant(self) -> None:
        """Let the images be of the instant of the freeze; before describe()."""
        for images in self._images:
            offsets = images.tree.time_offsets
            self.ports.dumper.set_instant(
                images.directory,
                self.view,
                Nanoseconds(self.view.clocks.monotonic_ns + offsets.monotonic_ns),
                Nanoseconds(self.view.clocks.boottime_ns + offsets.boottime_ns),
            )

    def describe(
        self, keeping: Keeping, *, job: JobName | None, message: str, parent: CheckpointId | None
    ) -> Checkpoint:
        """The snapshot as a checkpoint, its files kept."""
        ports, view = self.ports, self.view
        workload = ports.inspector.describe(view, self.target)
        workload = replace(
            workload,
            external_mounts=tuple(
                {mount.key: mount for mounts in self._mounts.values() for mount in mounts}.values()
            ),
            outside_files=self._outside,
        )
        return Checkpoint(
            job=job,
            message=message,
            created_ns=view.clocks.realtime_ns,
            parent=parent,
            frozen_ns=self.frozen_ns,
            dump_ns=self._dump_ns,
            host=ports.inspector.host_facts(),
            clocks=view.clocks,
            timers=tuple(
                timer for images in self._images for timer in ports.dumper.timers(images.directory, view)
            ),
            waits=view.waits,
            settings=view.settings,
            options=self.wanted.options.recorded,
            workload=workload,
            image_sets=tuple(self._keep_images(images, keeping) for images in self._images),
            inodes=ports.inspector.inodes(view),
            carried_files=tuple(
                replace(
                    carried,
                    content=replace(keeping.add_file(copy, carried.content.name), mode=carried.content.mode),
                )
                for images in self._images
                for carried, copy in images.carried
            ),
            saved_files=self._keep_saved(keeping),
            saved_directories=self.selection.directories,
            volumes=tuple(
                replace(volume, content=keeping.add_file(copy, volume.content.name))
                for volume, copy in self._volumes
            ),
            networks=self._networks,
        )

    def _start(self, tree: Tree) -> TreeDump:
        return self.ports.dumper.start(self.operation, tree, lazy=self.wanted.lazy)

    def _dump_trees(self, survey: Survey, started: list[TreeDump], hold: _Hold, *, patient: bool) -> None:
        first_root = survey.trees[0].root

        def freeze() -> None:
            self._freeze(survey, hold, patient=patient)
            if first_root not in [tree.root for tree in self.view.trees]:
                raise _RootEndedError
            if hold.froze is not None:
                hold.froze()

        self._dump_tree(first_root, started[0], hold, freeze)
        others = [tree for tree in self.view.trees if tree.root != first_root]
        for index, tree in enumerate(others, start=1):
            if index == len(started):
                started.append(self._start(tree))
            self._dump_tree(tree.root, started[index], hold, self._still_frozen)
        if hold.held is None:
            self._still_frozen()
            self._copy_volumes()
        self.operation.note_phase("dumped")

    def _freeze(self, survey: Survey, hold: _Hold, *, patient: bool) -> None:
        if hold.freezes is not None:
            hold.freezes()
        self.operation.note_phase("freezing")
        survey = self.ports.inspector.watch_waits(survey)
        self.froze_at = self.ports.clock.stopwatch()
        self.freezer.freeze(self.wanted.freeze_timeout)
        self.stood_still_at = self.ports.clock.stopwatch()
        self.operation.note_phase("frozen")
        self._view = self.ports.inspector.confirm(survey, self.freezer.cgroup, patient=patient)
        self.warnings += self._view.warnings
        if not self._view.trees:
            raise NoSuchTarget(
                kind="process in", name=str(self.target.ref), remedy="It ended while it was being frozen."
            )
        if hold.held is not None and hold.one_tree and len(self._view.trees) > 1:
            raise DumpFailed(
                cause=f"{len(self._view.trees)} trees {hold.one_tree}",
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

    def _dump_tree(self, root: Pid, tree_dump: TreeDump, hold: _Hold, before: Callable[[], None]) -> None:
        directory = self.operation.directory(str(root))

        clock = self.ports.clock
        began = clock.stopwatch()

        def stopped() -> None:
            self._dump_ns = Nanoseconds(self._dump_ns + clock.stopwatch() - began)
            tree = next(tree for tree in self.view.trees if tree.root == root)
            images = _TreeImages(tree=tree, directory=directory)
            images.carried = self.ports.dumper.carry(directory, self.operation.staging, self.view)
            if not self._images:  # all trees stand still at one instant: once is enough
                self.selection.take()
                self.warnings += self.selection.warnings
            self._images.append(images)
            self.operation.note_phase("written")
            if hold.dumped is not None and len(self._images) == len(self.view.trees):
                hold.dumped()
            if hold.held is not None and len(self._images) == len(self.view.trees):
                self._copy_volumes()
                hold.held()

        statistics = tree_dump.run(
            root=root,
            images=directory,
            cgroup=self.freezer.cgroup,
            options=self.wanted.options,
            external_mounts=self._mounts.get(root, ()),
            outside_files=self._outside,
            leave_running=not self._is_held(root, hold),
            before=before,
            stopped=stopped,
        )
        self._images[-1].statistics = statistics

    def _is_held(self, root: Pid, hold: _Hold) -> bool:
        # Which tree is the last one is known for sure under the freeze only; where there are several, all are left
        # frozen by CRIU, and killed by who took the snapshot.
        return hold.held is not None and (bool(hold.one_tree) or self._is_alone(root))

    def _is_alone(self, root: Pid) -> bool:
        return set(self._mounts) == {root}

    def _copy_volumes(self) -> None:
        # After CRIU: it makes and removes links in the workload's directories.
        self._volumes = self.ports.volumes.copy_frozen(self.target, self.operation)
        if self._volumes:
            self.operation.note_phase("copied")

    def _keep_saved(self, keeping: Keeping) -> tuple[SavedFile, ...]:
        kept: dict[str, StoredFile] = {}
        for saved, copy in self.selection.files:
            if copy not in kept:
                kept[copy] = replace(keeping.add_file(copy, saved.content.name), mode=saved.content.mode)
        return tuple(replace(saved, content=kept[copy]) for saved, copy in self.selection.files)

    def _keep_images(self, images: _TreeImages, keeping: Keeping) -> ImageSet:
        names = self.ports.dumper.image_files(images.directory)
        addresses = self.ports.dumper.page_addresses(images.directory)
        root = images.tree.root
        return ImageSet(
            root=root,
            files=tuple(
                keeping.add_image(root, f"{images.directory}/{name}", name, addresses.get(name, ()))
                for name in names
            ),
            statistics=images.statistics,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Hold:
    """What take() was given."""

    held: Callable[[], None] | None
    one_tree: str
    froze: Callable[[], None] | None
    freezes: Callable[[], None] | None
    dumped: Callable[[], None] | None
