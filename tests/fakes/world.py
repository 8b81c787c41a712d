"""A world without a machine: every port of the flows, one journal, and a place where it fails when told.

What the fakes keep is what the flows promise about: whether the workload stands still, is alive, where its
processes are, and what is durable.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from fakes.checkpoints import INODE
from fakes.values import CLOCKS, HOST, a_saved_file, a_tree, an_image_file

from ckpt.codec.objects import ZERO_DIGEST
from ckpt.errors import DumpFailed, Interrupted, NoSpace, ObjectCorrupt, ObjectMissing, RestoreFailed
from ckpt.model.checkpoint import (
    AddressRun,
    CarriedFile,
    Checkpoint,
    DumpOptions,
    DumpStatistics,
    HostFacts,
    SavedFile,
    StoredFile,
    Volume,
)
from ckpt.model.clocks import Clocks, PendingTimer, PendingWait, Resumption
from ckpt.model.findings import Finding
from ckpt.model.inodes import FileChange, InodeMethod, InodeOutcome, InodeRecord
from ckpt.model.network import Network
from ckpt.model.origin import Origin
from ckpt.model.reports import Problem, StoredCheckpoint
from ckpt.model.settings import ProcessSettings
from ckpt.model.shipping import ShippedDirectory
from ckpt.model.target import Target, TargetRef
from ckpt.model.workload import ExternalMount, OutsideFile, Tree, Workload
from ckpt.units import CHUNK_BYTES, ByteCount, CheckpointId, DeviceNumber, JobName, Nanoseconds, Pid, Tag


class InjectedError(Exception):
    """The failure that a test asked for; no part of ckpt knows it."""


@dataclass
class World:
    """The machine's state and the journal of every step that was taken on it."""

    trees: tuple[Tree, ...] = field(default_factory=lambda: (a_tree(100), a_tree(200)))
    journal: list[str] = field(default_factory=list)
    fail_at: str | None = None
    frozen: bool = False
    alive: bool = True
    gathered: bool = False
    operations: int = 0
    manifests: dict[CheckpointId, Checkpoint] = field(default_factory=dict)
    tags: dict[Tag, CheckpointId] = field(default_factory=dict)
    criu_running: int = 0
    half_restored: int = 0
    restored: int = 0
    put_back: bool = False
    inodes_put_back: bool = False
    copies_of_files: bool = False
    files_written: tuple[str, ...] = ()
    volumes_held: bool = False
    volumes_replaced: bool = False
    changes: tuple[FileChange, ...] = ()
    device_changes: tuple[FileChange, ...] = ()
    taken_pids: tuple[str, ...] = ()
    interrupted_late: bool = False
    roots_replaced: int = 0
    moved_to: str = ""
    damaged: set[CheckpointId] = field(default_factory=set)
    without_receipt: set[CheckpointId] = field(default_factory=set)
    network_detached: bool = False
    time: int = 0

    def step(self, name: str) -> None:
        """Write the step into the journal, and fail if this is the place."""
        self.journal.append(name)
        self.time += 1_000_000
        if name == self.fail_at:
            raise InjectedError(name)


class FakeClock:
    def __init__(self, world: World) -> None:
        self.world = world

    def read(self) -> Clocks:
        return CLOCKS

    def realtime(self) -> Nanoseconds:
        return Nanoseconds(CLOCKS.realtime_ns + 5_000_000_000)

    def stopwatch(self) -> Nanoseconds:
        return Nanoseconds(self.world.time)


class FakeOperation:
    def __init__(self, world: World) -> None:
        self.world = world
        world.operations += 1

    @property
    def staging(self) -> str:
        return "/staging"

    def directory(self, name: str) -> str:
        self.world.step(f"directory {name}")
        return f"{self.staging}/{name}"

    def note_phase(self, phase: str) -> None:
        self.world.step(f"phase {phase}")

    def decided_by(self, record: str) -> None:
        self.world.step(f"decided by {record}")

    def guard(self) -> None:
        self.world.step("guard")

    def end(self) -> None:
        self.world.operations -= 1


class FakeOperations:
    def __init__(self, world: World) -> None:
        self.world = world

    def begin(self, what: str) -> FakeOperation:
        self.world.step("begin")
        return FakeOperation(self.world)


class FakeFreezer:
    cgroup = "/cgroup/of/workload"

    def __init__(self, world: World) -> None:
        self.world = world

    def gather(self) -> None:
        self.world.gathered = True
        self.world.step("gather")

    def release(self) -> None:
        self.world.gathered = False

    def prepare(self) -> None:
        self.world.step("prepare the freeze")

    def freeze(self, timeout: Nanoseconds) -> None:
        self.world.frozen = True
        self.world.step("freeze")

    def is_frozen(self) -> bool:
        return self.world.frozen

    def thaw(self) -> None:
        self.world.journal.append("thaw")
        self.world.frozen = False

    def kill(self) -> None:
        self.world.step("kill")
        self.world.alive = False


class FakeTargets:
    def __init__(self, world: World) -> None:
        self.world = world

    def resolve(self, ref: TargetRef) -> Target:
        self.world.step("resolve")
        return Target(
            ref=ref,
            cgroup="/cgroup/of/workload",
            roots=tuple(tree.root for tree in self.world.trees),
            job=JobName("web"),
        )

    @contextmanager
    def lock(self, target: Target) -> Iterator[None]:
        self.world.step("lock")
        yield

    def freezer(self, target: Target, operation: FakeOperation) -> FakeFreezer:
        return FakeFreezer(self.world)


@dataclass
class FakeView:
    trees: tuple[Tree, ...]
    clocks: Clocks = CLOCKS
    waits: tuple[PendingWait, ...] = ()
    settings: tuple[ProcessSettings, ...] = ()
    warnings: tuple[str, ...] = ()


class FakeInspector:
    def __init__(self, world: World) -> None:
        self.world = world

    def check(self, target: Target, options: DumpOptions) -> tuple[Finding, ...]:
        return ()

    def survey(self, target: Target, options: DumpOptions, *, force: bool) -> FakeView:
        self.world.step("survey")
        if self.world.roots_replaced:
            self.world.roots_replaced -= 1
            return FakeView((a_tree(99), *self.world.trees))
        return FakeView(self.world.trees)

    def watch_waits(self, survey: FakeView) -> FakeView:
        assert not self.world.frozen
        return survey

    def confirm(self, survey: FakeView, cgroup: str, *, patient: bool) -> FakeView:
        assert self.world.frozen
        self.world.step("confirm")
        return FakeView(self.world.trees)

    def describe(self, view: FakeView, target: Target) -> Workload:
        self.world.step("describe")
        return Workload(
            kind=target.ref.kind,
            cgroup=target.cgroup,
            trees=view.trees,
            cgroups=(),
            external_mounts=(),
            outside_files=(),
        )

    def inodes(self, view: FakeView) -> tuple[InodeRecord, ...]:
        self.world.step("inodes")
        return (INODE,)

    def host_facts(self) -> HostFacts:
        return HOST

    def differences(self, inodes: tuple[InodeRecord, ...]) -> tuple[FileChange, ...]:
        self.world.step("compare files")
        return self.world.changes


STATISTICS = DumpStatistics(
    freezing_ns=Nanoseconds(1),
    frozen_ns=Nanoseconds(2),
    memory_dump_ns=Nanoseconds(3),
    memory_write_ns=Nanoseconds(4),
    pages_scanned=5,
    pages_written=6,
)


class FakeTreeDump:
    def __init__(self, world: World) -> None:
        self.world = world
        self.open = True
        world.criu_running += 1

    def run(
        self,
        *,
        root: Pid,
        images: str,
        cgroup: str,
        options: DumpOptions,
        external_mounts: tuple[ExternalMount, ...],
        outside_files: tuple[OutsideFile, ...],
        leave_running: bool,
        before: Callable[[], None],
        stopped: Callable[[], None],
    ) -> DumpStatistics:
        before()
        self.world.step(f"dump {root}")
        assert self.world.frozen
        if root not in [tree.root for tree in self.world.trees]:
            raise DumpFailed(cause="no such task")
        stopped()
        if not leave_running:
            self.world.journal.append("CRIU kills")
            self.world.alive = False
        return STATISTICS

    def close(self) -> None:
        if self.open:
            self.world.criu_running -= 1
        self.open = False


class FakeDumper:
    def __init__(self, world: World) -> None:
        self.world = world

    def start(self, operation: FakeOperation, tree: Tree, *, lazy: bool) -> FakeTreeDump:
        self.world.step("start CRIU")
        return FakeTreeDump(self.world)

    def external_mounts(self, tree: Tree) -> tuple[ExternalMount, ...]:
        return ()

    def outside_files(self, trees: tuple[Tree, ...]) -> tuple[OutsideFile, ...]:
        return ()

    def networks(self, trees: tuple[Tree, ...]) -> tuple[Network, ...]:
        return ()

    def connection_lock(self, images: str) -> str:
        return f"lock of {images}"

    def carry(self, images: str, staging: str, view: FakeView) -> tuple[tuple[CarriedFile, str], ...]:
        assert self.world.frozen
        self.world.step("carry")
        return ()

    def image_files(self, images: str) -> tuple[str, ...]:
        return ("inventory.img", "pstree.img")

    def page_addresses(self, images: str) -> dict[str, tuple[AddressRun, ...]]:
        return {}

    def let_go(self, view: FakeView, thaw: Callable[[], None]) -> None:
        thaw()

    def set_instant(self, images: str, view: FakeView, monotonic: Nanoseconds, boottime: Nanoseconds) -> None:
        self.world.step("set instant")

    def timers(self, images: str, view: FakeView) -> tuple[PendingTimer, ...]:
        return ()


class FakeSession:
    cgroup = "/cgroup/restored"
    problems: tuple[str, ...] = ()
    is_committed = False

    def __init__(self, world: World) -> None:
        self.world = world

    def add(
        self,
        *,
        tree: Tree,
        images: str,
        options: DumpOptions,
        external_mounts: tuple[ExternalMount, ...],
        outside_files: tuple[OutsideFile, ...],
        resumption: Resumption,
        waits: tuple[PendingWait, ...],
        timers: tuple[PendingTimer, ...],
        settings: tuple[ProcessSettings, ...],
    ) -> Pid:
        self.world.half_restored += 1
        self.world.step(f"restore {tree.root}")
        if tree.root == 666:
            raise RestoreFailed(cause="no")
        return tree.root

    def keep(
        self, inodes: tuple[InodeRecord, ...], methods: Mapping[str, InodeMethod]
    ) -> tuple[InodeOutcome, ...]:
        self.world.step("keep the identities" if inodes else "keep nothing")
        return tuple(
            InodeOutcome(
                path=inode.path,
                recorded=inode.identity,
                found=inode.identity,
                seen=inode.identity,
                method=methods.get(inode.path, InodeMethod.SAME),
            )
            for inode in inodes
        )

    def hold(self) -> None:
        self.world.step("hold the restored")

    def commit(self, origin: Origin, let_go: Callable[[], None] | None = None) -> None:
        self.world.step("commit restore")
        if let_go is not None:
            let_go()
        self.world.restored, self.world.half_restored = self.world.half_restored, 0
        self.is_committed = True
        if self.world.interrupted_late:
            raise Interrupted(operation="ckpt restore")

    def abort(self) -> None:
        self.world.half_restored = 0


class FakeRestorer:
    def __init__(self, world: World) -> None:
        self.world = world

    def pace(self) -> ByteCount:
        return ByteCount(1 << 30)

    def check_pids(self, trees: tuple[Tree, ...]) -> tuple[str, ...]:
        self.world.step("check pids")
        return self.world.taken_pids

    def session(self, **place: object) -> FakeSession:
        self.world.step("session")
        return FakeSession(self.world)

    def put_back(self, files: tuple[tuple[CarriedFile, str], ...]) -> FakePutBack:
        self.world.step("put back")
        self.world.put_back = True
        return FakePutBack(self.world)


class FakePutBack:
    def __init__(self, world: World) -> None:
        self.world = world

    def undo(self) -> None:
        self.world.put_back = False

    def tidy(self) -> None:
        self.world.journal.append("tidy")


class FakeSelection:
    files: tuple[tuple[SavedFile, str], ...] = ()
    directories: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    late_warnings: tuple[str, ...] = ()

    def __init__(self, world: World, paths: tuple[str, ...], logs: tuple[str, ...]) -> None:
        self.world = world
        self.paths = paths
        self.logs = logs

    def take(self) -> None:
        self.world.step("take files")
        self.world.copies_of_files = True
        self.files = tuple((a_saved_file(path), f"/copy/of{path}") for path in self.paths)

    def appended(self) -> Iterator[tuple[SavedFile, Callable[[int], bytes]]]:
        for path in self.logs:
            yield a_saved_file(path), bytes

    def drop(self) -> None:
        self.world.copies_of_files = False


class FakeSaver:
    def __init__(self, world: World) -> None:
        self.world = world

    def select(
        self, paths: tuple[str, ...], operation: FakeOperation, *, appended: tuple[str, ...] = ()
    ) -> FakeSelection:
        self.world.step("select files")
        return FakeSelection(self.world, paths, appended)


class FakeWrittenFiles:
    warnings: tuple[str, ...] = ()

    def __init__(self, world: World) -> None:
        self.world = world

    def write(
        self,
        ref: str,
        files: tuple[tuple[SavedFile, str], ...],
        directories: tuple[str, ...],
        *,
        absent: tuple[str, ...] = (),
        made: tuple[ShippedDirectory, ...] = (),
        job: str = "",
    ) -> None:
        self.world.files_written = tuple(file.path for file, _ in files)
        self.world.step("write files")

    def undo(self) -> None:
        self.world.files_written = ()

    def settle(self) -> None:
        self.world.journal.append("settle")


class FakeFileWriter:
    def __init__(self, world: World) -> None:
        self.world = world

    def begin(self, operation: FakeOperation) -> FakeWrittenFiles:
        return FakeWrittenFiles(self.world)

    def accept_changed(self, images: tuple[str, ...], paths: frozenset[str]) -> None:
        self.world.step(f"accept {', '.join(sorted(paths))}")


class FakeKeeper:
    def __init__(self, world: World) -> None:
        self.world = world
        self.methods: dict[str, InodeMethod] = {}

    def put_back(self, inodes: tuple[InodeRecord, ...], images: tuple[str, ...]) -> None:
        self.world.inodes_put_back = True
        self.world.step("put inodes back")
        self.methods = {inode.path: InodeMethod.PLACED for inode in inodes}

    def undo(self) -> None:
        self.world.inodes_put_back = False

    def settle(self) -> None:
        self.world.journal.append("settle")


class FakeInodes:
    def __init__(self, world: World) -> None:
        self.world = world

    def keeper(self, operation: FakeOperation) -> FakeKeeper:
        return FakeKeeper(self.world)

    def pin(self, checkpoint: CheckpointId, inodes: tuple[InodeRecord, ...]) -> tuple[str, ...]:
        self.world.step("pin")
        return ()


VOLUME = Volume(
    mountpoint="/srv/volume",
    filesystem="ext4",
    device=DeviceNumber(os.makedev(7, 1 << 19)),
    content=an_image_file("volume-0.img"),
)


class FakeNetworks:
    def __init__(self, world: World) -> None:
        self.world = world

    def detach(self, target: Target, operation: object) -> None:
        assert self.world.frozen
        self.world.network_detached = True
        self.world.step("detach the network")

    def attach(self, target: Target, operation: object) -> None:
        self.world.network_detached = False

    def remove(self, target: Target) -> None:
        assert not self.world.alive
        self.world.step("remove the network")


class FakeVolumes:
    def __init__(self, world: World) -> None:
        self.world = world

    def write_out(self, target: Target) -> None:
        self.world.step("write out volumes")

    def copy_frozen(self, target: Target, operation: FakeOperation) -> tuple[tuple[Volume, str], ...]:
        assert self.world.frozen
        self.world.step("copy volumes")
        return ((VOLUME, "/staging/volume-0.img"),)

    def bring(
        self, *, ref: str, job: JobName, volumes: tuple[Volume, ...], operation: FakeOperation
    ) -> FakeBroughtVolumes:
        assert volumes == (VOLUME,)
        self.world.step("make room for volumes")
        return FakeBroughtVolumes(self.world)


class FakeBroughtVolumes:
    images = ((VOLUME.content, "/volumes/0.img"),)

    def __init__(self, world: World) -> None:
        self.world = world
        world.volumes_held = True

    def attach(self) -> tuple[FileChange, ...]:
        self.world.volumes_replaced = True
        self.world.step("attach volumes")
        return self.world.device_changes

    def settle(self) -> None:
        self.world.journal.append("settle")

    def undo(self) -> None:
        self.world.volumes_replaced = False

    def close(self) -> None:
        self.world.volumes_held = False


class FakeWriter:
    new_bytes = ByteCount(7)
    stored_bytes = ByteCount(5)

    def __init__(self, world: World) -> None:
        self.world = world

    def add_file(self, path: str, name: str, addresses: tuple[AddressRun, ...] = ()) -> StoredFile:
        self.world.step(f"store {path}")
        return an_image_file(name)

    def add_stream(
        self, read: Callable[[int], bytes], *, name: str, size_bytes: int, mode: int
    ) -> StoredFile:
        self.world.step(f"read {name} on")
        return an_image_file(name)

    def commit(self, checkpoint: Checkpoint) -> CheckpointId:
        self.world.step("commit")
        number = CheckpointId(f"{len(self.world.manifests):064x}")
        self.world.manifests[number] = checkpoint
        return number


class FakeStore:
    place = "memory"

    def __init__(self, world: World) -> None:
        self.world = world

    @contextmanager
    def writer(self, parent: CheckpointId | None) -> Iterator[FakeWriter]:
        self.world.step("open store" if parent is None else f"open store for a child of {parent[-4:]}")
        yield FakeWriter(self.world)

    def resolve(self, ref: str) -> CheckpointId:
        back: dict[JobName | None, int] = {}
        for number, checkpoint in reversed(self.world.manifests.items()):
            if "~" in ref and number in self.world.damaged & self.world.without_receipt:
                raise _damaged(number)
            at = back[checkpoint.job] = back.get(checkpoint.job, -1) + 1
            if ref in {number, f"{checkpoint.job}~{at}", "" if at else f"{checkpoint.job}@latest"}:
                return number
        raise ObjectMissing(place=self.place, kind="checkpoint", name=ref)

    def load(self, checkpoint: CheckpointId) -> StoredCheckpoint:
        self.world.step("load")
        return self._stored(checkpoint)

    def _stored(self, checkpoint: CheckpointId) -> StoredCheckpoint:
        if checkpoint in self.world.damaged:
            raise _damaged(checkpoint)
        return StoredCheckpoint(
            id=checkpoint, checkpoint=self.world.manifests[checkpoint], tags=(), stored_bytes=ByteCount(0)
        )

    def list(self, on_problem: Callable[[Problem], None] | None = None) -> tuple[StoredCheckpoint, ...]:
        found = []
        for number in self.world.manifests:
            try:
                found.append(self._stored(number))
            except ObjectCorrupt as error:
                if on_problem is None:
                    raise
                on_problem(Problem(slug=error.slug, subject=number, message=error.message))
        return tuple(found)

    def check_trust(self, checkpoint: CheckpointId) -> None:
        self.world.step("check trust")

    def fetch(self, checkpoint: CheckpointId, file: StoredFile, path: str) -> None:
        self.world.step(f"fetch {path}")
        if self.world.fail_at == "full disk":
            raise NoSpace(place=path, available_bytes=0, needed_bytes=1)

    def read_range(self, checkpoint: CheckpointId, file: StoredFile, offset: int, size: int) -> bytes:
        self.world.step(f"read {size} bytes of {file.name}")
        return bytes(size)

    def page_digests(self, checkpoint: CheckpointId, file: StoredFile) -> bytes:
        self.world.step(f"read digests of {file.name}")
        return ZERO_DIGEST * -(-file.size_bytes // CHUNK_BYTES)

    def tag(self, checkpoint: CheckpointId, tag: Tag) -> None:
        self.world.step(f"tag {tag}")
        self.world.tags[tag] = checkpoint


def _damaged(checkpoint: CheckpointId) -> ObjectCorrupt:
    return ObjectCorrupt(kind="manifest", name=checkpoint, reason="a bit has flipped")


class FakeJobs:
    def __init__(self, world: World) -> None:
        self.world = world

    def moved_to(self, job: JobName) -> str:
        return self.world.moved_to

    def mark_stopped(self, job: JobName, checkpoint: CheckpointId, locks: tuple[str, ...] = ()) -> None:
        self.world.step("mark stopped")
