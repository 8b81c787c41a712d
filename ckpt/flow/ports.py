"""What the flows need of the world, as Protocols; adapters in host/ and store/ fit them (cli/wiring.py).

Rule: nothing here is specific to CRIU's RPC, to a cgroup version, or to how a store keeps its bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from ckpt.errors import CkptError
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
from ckpt.model.contents import TreeContents
from ckpt.model.findings import Finding
from ckpt.model.inodes import FileChange, InodeMethod, InodeOutcome, InodeRecord
from ckpt.model.memory import AddressSpace
from ckpt.model.needs import ImageNeeds, Needs
from ckpt.model.network import Network
from ckpt.model.origin import Origin
from ckpt.model.reports import Problem, StoredCheckpoint, SweepReport, VerifyReport
from ckpt.model.settings import ProcessSettings
from ckpt.model.shipping import ShippedDirectory
from ckpt.model.target import Target, TargetRef
from ckpt.model.workload import CgroupRecord, ExternalMount, OutsideFile, Tree, Workload
from ckpt.units import ByteCount, CheckpointId, JobName, Nanoseconds, Pid, Tag


class Clock(Protocol):
    """The host's clocks."""

    def read(self) -> Clocks:
        """All three clocks at one instant, with what identifies them."""

    def realtime(self) -> Nanoseconds:
        """CLOCK_REALTIME now."""

    def stopwatch(self) -> Nanoseconds:
        """A clock that only ever goes forward, for durations."""


class Operation(Protocol):
    """One use case under way: its journal entry on disk, its staging directory, and its guardian.

    Everything noted is durable before note() returns, so that `ckpt recover` can undo it after a crash.
    """

    @property
    def staging(self) -> str:
        """An empty directory on disk, removed with the operation."""

    def directory(self, name: str) -> str:
        """Make an empty directory in `staging`, in place of an earlier one; gives its path."""

    def note_phase(self, phase: str) -> None:
        """Note how far the operation has come."""

    def decided_by(self, record: str) -> None:
        """Let a crash undo what the migration whose record is at this path has not decided otherwise."""

    def guard(self) -> None:
        """Start the guardian: if this process dies before end(), it undoes what was noted, at once."""

    def end(self) -> None:
        """The operation is over and nothing is left to undo: dismiss the guardian, remove the staging."""


class Freezer(Protocol):
    """Stops one workload and lets it go on."""

    @property
    def cgroup(self) -> str:
        """The absolute path of the cgroup directory that is frozen."""

    def gather(self) -> None:
        """Bring all processes of the workload into `cgroup`, noting first where they came from."""

    def release(self) -> None:
        """Put the processes back where they came from and remove what gather() made; safe to repeat."""

    def prepare(self) -> None:
        """Do all that freeze() needs but freezing, which then takes no time that it need not.

        Raises:
            WrongState: it is frozen by somebody else, in a way that a dump cannot live with.
        """

    def freeze(self, timeout: Nanoseconds) -> None:
        """Stop every task of the cgroup and wait until the kernel confirms it.

        Raises:
            FreezeTimeout: not frozen in time, and thawed again; names the tasks and what they wait in.
        """

    def is_frozen(self) -> bool:
        """Whether the kernel says that every task of the cgroup is stopped."""

    def thaw(self) -> None:
        """Let every task go on; safe to repeat."""

    def kill(self) -> None:
        """Kill every task of the cgroup and wait until none is left, zombies of others excepted."""


class Targets(Protocol):
    """From what the user named to what is there."""

    def resolve(self, ref: TargetRef) -> Target:
        """The target as it is now.

        Raises:
            NoSuchTarget: no such process, cgroup or job, or it has no process.
            CannotCheckpoint: a kernel thread, this very process or an ancestor of it.
        """

    def lock(self, target: Target) -> AbstractContextManager[None]:
        """Keep other ckpt processes off this workload.

        Raises:
            Locked: another one is at it; names its pid.
        """

    def freezer(self, target: Target, operation: Operation) -> Freezer:
        """The freezer of this target; what it does is noted in the operation."""


class Operations(Protocol):
    """The journal of what is under way on this host."""

    def begin(self, what: str) -> Operation:
        """A new operation with an entry and a staging directory of its own."""


class FrozenView(Protocol):
    """What was read while the workload stood still."""

    @property
    def trees(self) -> tuple[Tree, ...]:
        """The trees, in the order in which they are dumped."""

    @property
    def clocks(self) -> Clocks:
        """The clocks at the freeze."""

    @property
    def waits(self) -> tuple[PendingWait, ...]:
        """The timed waits that the freeze interrupted."""

    @property
    def settings(self) -> tuple[ProcessSettings, ...]:
        """What was set for the living processes and their threads."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user should know, and the survey did not tell."""


class Survey(Protocol):
    """What was read before the freeze, so that little is left to read under it."""

    @property
    def trees(self) -> tuple[Tree, ...]:
        """The trees as they were then."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user should know before the dump."""


class Inspector(Protocol):
    """Reads what a workload is and holds."""

    def check(self, target: Target, options: DumpOptions) -> tuple[Finding, ...]:
        """Everything that speaks against a dump with these options, or a restore after it; the gravest first."""

    def survey(self, target: Target, options: DumpOptions, *, force: bool) -> Survey:
        """Everything that may be read while the workload runs.

        Raises:
            CannotCheckpoint: what was found would fail, unless `force`: it is among the warnings then.
        """

    def watch_waits(self, survey: Survey) -> Survey:
        """The survey with what the threads wait for now: the last thing before the freeze."""

    def confirm(self, survey: Survey, cgroup: str, *, patient: bool) -> FrozenView:
        """Read again, under the freeze of `cgroup`, what may have changed; at most 30 µs a file.

        Raises:
            CannotCheckpoint: what was found would fail, unless the survey was forced.
            NotNow: it would fail at this very moment, and may not after the workload went on; unless the survey was
                forced and we are not `patient` any more: it is among the warnings then.
        """

    def describe(self, view: FrozenView, target: Target) -> Workload:
        """The workload as the manifest records it; slow, and done after the thaw."""

    def inodes(self, view: FrozenView) -> tuple[InodeRecord, ...]:
        """All files with their digests, taken now and marked where they changed since the freeze."""

    def host_facts(self) -> HostFacts:
        """This host."""

    def differences(self, inodes: tuple[InodeRecord, ...]) -> tuple[FileChange, ...]:
        """What of the recorded files is not as it was, on this host now."""


class TreeDump(Protocol):
    """CRIU's process for one tree, already started."""

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
        """Dump the tree below `root` into the directory `images`.

        Args:
            root: The root process.
            images: An empty directory, which is filled.
            cgroup: The cgroup that is, or in `before` will be, frozen.
            options: What CRIU is told.
            external_mounts: Mounts that are not saved.
            outside_files: What the workload shares with processes outside.
            leave_running: False lets CRIU kill the tree, with its connections locked, after `stopped`.
            before: Called when CRIU is ready to begin: the place to freeze.
            stopped: Called when the images are written and the tasks still stand.

        Raises:
            DumpFailed: with the cause from CRIU's log; the tasks are as they were.
        """

    def close(self) -> None:
        """End CRIU's process, if it still runs; safe to repeat."""


class Dumper(Protocol):
    """Starts CRIU for dumps, and knows its images."""

    def start(self, operation: Operation, tree: Tree, *, lazy: bool) -> TreeDump:
        """Start CRIU, so that its start-up is paid before the freeze.

        With `lazy` private anonymous memory stays in the tasks; the images do not have it.
        """

    def external_mounts(self, tree: Tree) -> tuple[ExternalMount, ...]:
        """The mounts of a tree with its own mount namespace that are taken from the host at restore."""

    def outside_files(self, trees: tuple[Tree, ...]) -> tuple[OutsideFile, ...]:
        """Pipes and terminals that the workload shares with processes outside."""

    def networks(self, trees: tuple[Tree, ...]) -> tuple[Network, ...]:
        """The networks of the workload's own that a restore makes again, as they are now."""

    def connection_lock(self, images: str) -> str:
        """The name of the lock that keeps the connections of what CRIU has killed, until it is restored."""

    def carry(self, images: str, staging: str, view: FrozenView) -> tuple[tuple[CarriedFile, str], ...]:
        """Copy what CRIU will not keep into `staging`, in the `stopped` call.

        Each file comes with the path of its copy; the root of its content is not known yet.
        """

    def image_files(self, images: str) -> tuple[str, ...]:
        """The names of the files that belong to the image set, sorted.

        Raises:
            DumpFailed: the set is not complete.
        """

    def page_addresses(self, images: str) -> dict[str, tuple[AddressRun, ...]]:
        """From the name of a pages file to the pages of memory that are in it."""

    def let_go(self, view: FrozenView, thaw: Callable[[], None]) -> None:
        """Call `thaw`, and let the threads wait on where the dump has interrupted them."""

    def set_instant(
        self, images: str, view: FrozenView, monotonic: Nanoseconds, boottime: Nanoseconds
    ) -> None:
        """Write the freeze's instant into the image set, and let its timers be as they were then."""

    def timers(self, images: str, view: FrozenView) -> tuple[PendingTimer, ...]:
        """The armed timers that CRIU recorded, after set_instant()."""


class RestoreSession(Protocol):
    """A restore under way: tasks exist but none of them has run yet; abort() leaves nothing."""

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
        """Restore one more tree and hold it; gives its root's pid on this host.

        Trees whose clocks agreed share one time namespace. What is left of their timers is shortened by what
        the timers' clocks went on. What was set for the processes is set again.

        Raises:
            RestoreFailed: with the cause from CRIU's log; call abort().
        """

    @property
    def cgroup(self) -> str:
        """The absolute path of the cgroup that the workload is restored into."""

    @property
    def problems(self) -> tuple[str, ...]:
        """What of the recorded cgroups and settings this host refused, in sentences."""

    def keep(
        self, inodes: tuple[InodeRecord, ...], methods: Mapping[str, InodeMethod]
    ) -> tuple[InodeOutcome, ...]:
        """Let the tasks see the recorded identities from their first step on.

        Args:
            inodes: What they must go on seeing; nothing for what is real.
            methods: What was done to files before, by path.

        Returns:
            What each file shows, as the tasks themselves were asked.

        Raises:
            RestoreFailed, OsRefused: call abort().
        """

    def hold(self) -> None:
        """Let nothing of it run, also if this process dies."""

    def commit(self, origin: Origin, let_go: Callable[[], None] | None = None) -> None:
        """Let all trees go on, and file the workload as a job that came from there. From here on the workload lives, whatever happens to this process.

        `let_go` is called when all is done but that, and nothing of it has run: if it raises, call abort().
        """

    @property
    def is_committed(self) -> bool:
        """Whether the workload lives."""

    def abort(self) -> None:
        """Kill and remove everything that was restored; safe to repeat."""


class PutBack(Protocol):
    """Carried files that were put back."""

    def undo(self) -> None:
        """Leave everything as it was found."""

    def tidy(self) -> None:
        """Remove what only the restore itself needed."""


class Restorer(Protocol):
    """Brings trees back."""

    def pace(self) -> ByteCount:
        """How many bytes of images this host restores in a second, as far as that is known."""

    def check_pids(self, trees: tuple[Tree, ...]) -> tuple[str, ...]:
        """A sentence for every pid that is needed and taken, with the name of the process that has it."""

    def session(
        self,
        *,
        job: JobName,
        cgroup: str,
        cgroups: tuple[CgroupRecord, ...],
        new_pids: bool,
        trees: tuple[Tree, ...],
        held: frozenset[str],
        networks: tuple[Network, ...],
        pages_from: str,
        operation: Operation,
    ) -> RestoreSession:
        """Prepare the cgroups and the process that will be the parent of what is restored.

        Args:
            job: The name that it will be filed under.
            cgroup: An absolute path, or "" for one of our own that is named after the job.
            cgroups: The recorded cgroups, made where they are missing.
            new_pids: Give the trees a PID namespace of their own.
            trees: All that will be restored.
            held: The paths of the files that they hold.
            networks: Those of their own; each is joined to the host's when its connections are there.
            pages_from: The socket of who brings the pages that the images lack, or that may come later; "" for nobody.
            operation: Where it is noted.

        Raises:
            WrongState: the job runs, or the cgroup holds processes.
            HostMismatch: the cgroup cannot be made here.
            FeatureMissing, CommandFailed: a network cannot be.
        """

    def put_back(self, files: tuple[tuple[CarriedFile, str], ...]) -> PutBack:
        """Put carried files, whose contents lie at the given paths, where the restore needs them."""


class LateMemory(Protocol):
    """Memory that a workload gets out of a store when it runs already; for one restore."""

    def check(self) -> None:
        """Return if this host can bring memory later.

        Raises:
            FeatureMissing: it cannot.
        """

    def has_pages(self, file: StoredFile) -> bool:
        """Whether this file of an image set has pages: take() says which of those are wanted."""

    def take(
        self, checkpoint: CheckpointId, root: Pid, images: str, files: Sequence[StoredFile]
    ) -> tuple[StoredFile, ...]:
        """Bring later what can be of this image set, whose files but for pages lie in `images`.

        Returns:
            The files that must be there whole.

        Raises:
            ObjectMissing, ObjectCorrupt: the images are damaged.
        """

    @property
    def left_bytes(self) -> ByteCount:
        """How much take() has left out."""

    def begin(self, operation: Operation) -> str:
        """Serve from now on; gives the socket of who brings pages, as Restorer.session() takes it."""

    def follow(self) -> CkptError | None:
        """Return when all memory is there, with None; or when the workload was ended, with the reason.

        Never raises, is not interrupted, and is safe to repeat.
        """

    def close(self) -> None:
        """End it, and the workload with it if that runs and has not all; safe to repeat."""


class FileKeeper(Protocol):
    """Gives files back the inodes that a workload saw, for one restore."""

    def put_back(self, inodes: tuple[InodeRecord, ...], images: tuple[str, ...]) -> None:
        """Let the recorded paths lead to files with the recorded identities, where that can be done.

        Args:
            inodes: The files of the checkpoint.
            images: The directories of the image sets, which must name every file that is touched.

        Raises:
            ObjectCorrupt: a record names a file that no task held; nothing was changed.
            OsRefused: something was changed and could not be taken back.
        """

    @property
    def methods(self) -> Mapping[str, InodeMethod]:
        """How it was done, by path; the other files are as they were found."""

    def undo(self) -> None:
        """Leave everything as it was found; safe to repeat.

        Raises:
            OsRefused: something could not be taken back; all else was.
        """

    def settle(self) -> None:
        """The restore is committed: remove what only undo() needed. Never fails."""


class Inodes(Protocol):
    """The identities of files."""

    def keeper(self, operation: Operation) -> FileKeeper:
        """A keeper that notes in `operation` what it is about to do."""

    def pin(self, checkpoint: CheckpointId, inodes: tuple[InodeRecord, ...]) -> tuple[str, ...]:
        """Keep the inodes of these files for a restore on this host; sentences about what the user should know.

        Never fails: what cannot be pinned is not.
        """


class FileSelection(Protocol):
    """Files that are to be kept with the memory, and their copies once they are taken."""

    def take(self) -> None:
        """Copy the files as they are now, in the `stopped` call.

        Raises:
            NoSpace: there is no room for the copies.
            OsRefused, Usage: there are files by now that cannot be kept.
        """

    @property
    def files(self) -> tuple[tuple[SavedFile, str], ...]:
        """What was taken, each file with the path of its copy; the root of its content is not known yet.

        Names of one file have one copy, and their contents one name.
        """

    @property
    def directories(self) -> tuple[str, ...]:
        """The directories of which every file was taken."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user should know of it, in sentences."""

    def appended(self) -> Iterator[tuple[SavedFile, Callable[[int], bytes]]]:
        """Each file that only grows, with a reader of its content up to where it ended at take(); after the thaw.

        The reader gives at most so many bytes as it is asked for, b"" at the end. The root of the content is not
        known yet.

        Raises:
            OsRefused: one cannot be read.
        """

    @property
    def late_warnings(self) -> tuple[str, ...]:
        """What the user should know of the files that appended() gave, in sentences."""

    def drop(self) -> None:
        """Remove the copies; safe to repeat."""


class FileSaver(Protocol):
    """Keeps files with the memory of a workload."""

    def select(
        self, paths: tuple[str, ...], operation: Operation, *, appended: tuple[str, ...] = ()
    ) -> FileSelection:
        """Check the named paths, and prepare to copy what they stand for; nothing for no path.

        Args:
            paths: Of files and directories.
            operation: What is noted of it.
            appended: Files that only ever grow: they are read after the thaw. A missing one is none.

        Raises:
            Usage: a path cannot be kept.
            NoSpace: there is no room for the copies.
            OsRefused: something of it cannot be read.
        """


class WrittenFiles(Protocol):
    """Saved files that are written back for one restore."""

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
        """Let all saved files be as they were at the dump; call undo() if it fails.

        Args:
            ref: The checkpoint, as the user named it.
            files: Each with the path of its content.
            directories: Those that were saved whole: what else is in them is moved aside.
            absent: Paths outside of them at which no file was: what is there now is moved aside, too.
            made: Directories that are made where they are missing, each after those that it is in.
            job: What is restored: of ckpt's own files its logs alone are written.

        Raises:
            HostMismatch: files cannot be written; each is named with the reason, and nothing was changed.
            NoSpace: a file system has too little space; nothing was changed.
            OsRefused: something could not be done that should have been possible.
        """

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user should know of it, in sentences."""

    def undo(self) -> None:
        """Leave everything as it was found; safe to repeat."""

    def settle(self) -> None:
        """The restore is committed: remove what only undo() needed. Never fails."""


class FileWriter(Protocol):
    """Brings the workload's files, or what CRIU wants of them, to where a restore needs them."""

    def begin(self, operation: Operation) -> WrittenFiles:
        """Nothing is written yet; what will be is noted in `operation`."""

    def accept_changed(self, images: tuple[str, ...], paths: frozenset[str]) -> None:
        """Let CRIU take the files at these paths as they are now; `images` are the directories of the image sets."""


class BroughtVolumes(Protocol):
    """The volumes of a checkpoint on their way to their places, for one restore."""

    @property
    def images(self) -> tuple[tuple[StoredFile, str], ...]:
        """What must be fetched, and where to, before attach()."""

    def attach(self) -> tuple[FileChange, ...]:
        """Mount the images that were fetched; what of the device numbers is not as recorded.

        Raises:
            WrongState: a former volume of the job is in use.
            OsRefused, FeatureMissing: this host cannot; call undo().
        """

    def settle(self) -> None:
        """The restore is committed: drop what the job had before. Never fails."""

    def undo(self) -> None:
        """Leave the job's volumes as they were found; safe to repeat.

        Raises:
            WrongState, OsRefused: something could not be unmounted or mounted again.
        """

    def close(self) -> None:
        """Let others at the volumes again; safe to repeat."""


class Volumes(Protocol):
    """File systems of the jobs' own."""

    def write_out(self, target: Target) -> None:
        """Write out what is dirty on the target's volumes, so that little is left for the time of the freeze.

        Raises:
            CannotCheckpoint: a volume is not mounted where it belongs.
        """

    def copy_frozen(self, target: Target, operation: Operation) -> tuple[tuple[Volume, str], ...]:
        """Copy the volumes of a target that stands still into the operation's staging.

        Each comes with the path of its copy; the root of its content is not known yet.

        Raises:
            NoSpace: the staging area is full.
            OsRefused: a volume cannot be frozen or read.
        """

    def bring(
        self, *, ref: str, job: JobName, volumes: tuple[Volume, ...], operation: Operation
    ) -> BroughtVolumes:
        """Make room for the volumes of a checkpoint that will be restored as this job.

        Raises:
            HostMismatch: a volume cannot be mounted at its place.
            WrongState: the job runs.
            Locked: another ckpt process is at the job's volumes.
        """


class StoreWriter(Protocol):
    """A checkpoint on its way into a store; what is not committed is garbage."""

    def add_file(self, path: str, name: str, addresses: tuple[AddressRun, ...] = ()) -> StoredFile:
        """Write a file's chunks that the store lacks; `addresses` say which pages of memory they are."""

    def add_stream(
        self, read: Callable[[int], bytes], *, name: str, size_bytes: int, mode: int
    ) -> StoredFile:
        """The same for bytes that come in order: `read(n)` gives at most n of them, b"" at their end.

        Raises:
            OsRefused: there are fewer than `size_bytes`.
        """

    def commit(self, checkpoint: Checkpoint) -> CheckpointId:
        """Make everything durable, then write the manifest, durable when this returns."""

    @property
    def new_bytes(self) -> ByteCount:
        """Plain bytes of the chunks that the store had not seen."""

    @property
    def stored_bytes(self) -> ByteCount:
        """What the store grew by on disk so far."""


class Store(Protocol):
    """Where checkpoints are kept; every read is verified."""

    @property
    def place(self) -> str:
        """How the user named it."""

    def writer(self, parent: CheckpointId | None) -> AbstractContextManager[StoreWriter]:
        """A writer of a checkpoint that is expected to be much like `parent`.

        Raises:
            StoreUnusable: not writable.
            NoSpace: full; what was half-written is removed.
        """

    def resolve(self, ref: str) -> CheckpointId:
        """The one checkpoint that a REF names.

        Raises:
            ObjectMissing: none.
            AmbiguousRef: several.
        """

    def load(self, checkpoint: CheckpointId) -> StoredCheckpoint:
        """Read and verify a manifest."""

    def list(self, on_problem: Callable[[Problem], None] | None = None) -> tuple[StoredCheckpoint, ...]:
        """All checkpoints, oldest first; `on_problem` is told of each that cannot be read, and is left out."""

    def check_trust(self, checkpoint: CheckpointId) -> None:
        """Return if the checkpoint may be restored on this host.

        Raises:
            Untrusted: nobody whom this host trusts has signed it.
        """

    def fetch(self, checkpoint: CheckpointId, file: StoredFile, path: str) -> None:
        """Write a file of the checkpoint to `path`, every byte verified."""

    def read_range(self, checkpoint: CheckpointId, file: StoredFile, offset: int, size: int) -> bytes:
        """The verified bytes of a file from `offset` on, at most 16 MiB at once.

        Raises:
            ObjectCorrupt: damaged, or the file does not have these bytes.
        """

    def page_digests(self, checkpoint: CheckpointId, file: StoredFile) -> bytes:
        """The SHA-256 of each CHUNK_BYTES of a file, one after another; its content is not read for that."""

    def tag(self, checkpoint: CheckpointId, tag: Tag) -> None:
        """Give the checkpoint a tag; it is taken from the one that had it."""

    def remove(self, checkpoints: tuple[CheckpointId, ...]) -> SweepReport:
        """Remove the checkpoints and every chunk that nothing refers to any more."""

    def verify(self, checkpoints: tuple[CheckpointId, ...] | None) -> VerifyReport:
        """Read and check the named checkpoints, or everything."""


class CheckpointSource(Protocol):
    """Where a checkpoint that is to be restored comes from: a store, or a migration."""

    def resolve(self, ref: str) -> CheckpointId:
        """The one checkpoint that a REF names."""

    def load(self, checkpoint: CheckpointId) -> StoredCheckpoint:
        """Read and verify what it says."""

    def check_trust(self, checkpoint: CheckpointId) -> None:
        """Return if the checkpoint may be restored on this host.

        Raises:
            Untrusted: nobody whom this host trusts has signed it.
        """

    def fetch(self, checkpoint: CheckpointId, file: StoredFile, path: str) -> None:
        """Write a file of the checkpoint to `path`, every byte verified."""


class MemoryLayouts(Protocol):
    """Reads out of image files where the memory of an image set lies."""

    def wanted(self, names: Iterable[str]) -> tuple[str, ...]:
        """Which of the files of an image set are read; no pages are among them."""

    def read(self, fill: Callable[[str], None]) -> tuple[AddressSpace, ...]:
        """The address spaces of an image set; `fill` puts the wanted files into the directory that it is given.

        Raises:
            ObjectCorrupt: the images are not what they should be.
        """


class ContentsReader(Protocol):
    """Reads out of image files what an image set holds."""

    def wanted(self, names: Iterable[str]) -> tuple[str, ...]:
        """Which of the files of an image set are read; no pages are among them."""

    def read(self, fill: Callable[[str], None], root: Pid, pids: Mapping[Pid, Pid]) -> TreeContents:
        """What the image set of a tree holds; `fill` puts the wanted files into the directory that it is given.

        Args:
            fill: Called once.
            root: The tree's root in the checkpoint.
            pids: From a number in the images to the host's.

        Raises:
            ObjectCorrupt: the images are not what they should be.
        """


class ImageNeedsReader(Protocol):
    """Reads out of image files what they need of a host."""

    def wanted(self, names: Iterable[str]) -> tuple[str, ...]:
        """Which of the files of an image set are read; no pages are among them."""

    def read(self, fill: Callable[[str], None]) -> ImageNeeds:
        """What an image set needs; `fill` puts the wanted files into the directory that it is given.

        Raises:
            ObjectCorrupt: the images are not what they should be.
        """


class TargetNeedsReader(Protocol):
    """Reads what a workload that runs needs of a host."""

    def needs_of(self, target: Target) -> Needs:
        """What it needs to be restored elsewhere; it is not stopped."""


class Judge(Protocol):
    """A host that says what it lacks: this one, or another."""

    def judge(self, needs: Needs) -> tuple[Finding, ...]:
        """Everything on that host that speaks against these needs, the gravest first.

        Raises:
            PeerFailed: another host, and it cannot say.
        """


class Jobs(Protocol):
    """The jobs of this host."""

    def with_root(self, pids: tuple[Pid, ...]) -> JobName | None:
        """The job that runs and whose root process is one of these; None if there is none."""

    def moved_to(self, job: JobName) -> str:
        """The host that the job was handed over to, or is just being; "" if it was not, or runs here again."""

    def mark_stopped(self, job: JobName, checkpoint: CheckpointId, locks: tuple[str, ...] = ()) -> None:
        """The job was ended by ckpt, and lives on in this checkpoint; `locks` are on its connections."""

    def mark_migrated(self, job: JobName, host: str) -> None:
        """The job was ended by ckpt, and lives on on that host."""


class Networks(Protocol):
    """The networks of the jobs' own."""

    def detach(self, target: Target, operation: Operation) -> None:
        """Let nothing that the workload's sockets send leave this host."""

    def attach(self, target: Target, operation: Operation) -> None:
        """Undo that; safe to repeat."""

    def remove(self, target: Target) -> None:
        """Remove what is left of a network whose workload has gone."""
