"""Restore a checkpoint: verify everything, restore every tree and hold it, then let all go on at once.

Rules:
  R1  Nothing is started before every byte has been fetched and verified and the files have been compared.
  R2  No tree runs before all trees are restored; a failure before that leaves nothing.
  R3  commit() is the only point of no return: whatever fails after it, nothing that the workload works with is taken
      back.
  R4  With late memory, private memory is not fetched before: it comes when the workload runs, every byte verified then,
      and where it cannot come the workload is ended. What it had changed outside stays, and so does the checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from ckpt.errors import HostMismatch
from ckpt.flow.files import (
    check_records,
    fetch_saved,
    judge_files,
    newer_files,
    newer_warnings,
    policies_for,
)
from ckpt.flow.ports import (
    CheckpointSource,
    Clock,
    FileWriter,
    Inodes,
    Inspector,
    LateMemory,
    Operation,
    Operations,
    Restorer,
    RestoreSession,
    Volumes,
)
from ckpt.flow.undo import Undo
from ckpt.flow.volumes import outside_volumes, refuse_other_devices
from ckpt.model.checkpoint import Checkpoint
from ckpt.model.clocks import (
    Clocks,
    TimePolicy,
    monotonic_goes_back,
    realtime_went_back,
    restore_span,
    resume_clocks,
)
from ckpt.model.inodes import FilesPolicy, InodePolicy
from ckpt.model.origin import Origin
from ckpt.model.reports import RestoreReport
from ckpt.model.shipping import ShippedDirectory
from ckpt.model.workload import TargetKind, Tree
from ckpt.units import SECOND, ByteCount, CheckpointId, JobName, Nanoseconds, Pid


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreCall:
    """What the user asked for. `job` None takes the checkpoint's own; `cgroup` "" one named after the job.

    `files` None writes saved files back where the checkpoint has them, and else wants files as they were. `absent` are
    paths at which no file may be found. `pages_from` is the socket of who brings memory that the images lack, or that
    may come later; "" where all is to be there before it goes on.
    """

    ref: str
    job: JobName | None
    time: TimePolicy
    inodes: InodePolicy
    new_pids: bool
    cgroup: str
    files: FilesPolicy | None = None
    absent: tuple[str, ...] = ()
    made: tuple[ShippedDirectory, ...] = ()
    pages_from: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RestorePorts:
    """The outside things that a restore needs; `late` None has all memory there before anything goes on."""

    clock: Clock
    operations: Operations
    inspector: Inspector
    inodes: Inodes
    restorer: Restorer
    writer: FileWriter
    store: CheckpointSource
    volumes: Volumes
    late: LateMemory | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What was restored and waits to go on: the roots, and the cgroup."""

    pids: tuple[Pid, ...]
    cgroup: str
    restore_ns: Nanoseconds
    warnings: tuple[str, ...]


class Gate(Protocol):
    """Who decides whether what is restored goes on."""

    def begin(self, operation: Operation) -> None:
        """The restore begins."""

    def held(self, held: Held) -> Origin:
        """All is restored, and nothing of it has run: once this returns it goes on; if it raises, all is taken back."""

    def let_go(self) -> None:
        """It is filed, and still nothing of it has run: the last moment to say no, by raising."""


class Company(Gate, Protocol):
    """A gate for several workloads that go on together."""

    def instant(self, at: Clocks) -> Clocks:
        """What this host's clocks read when it goes on, where it could by itself at `at`; what it needs is fetched."""

    def restored(self) -> None:
        """All trees are there, and CRIU holds them: returns when those of all workloads are, so that none answers another
        one's connections before they are there; if it raises, all is taken back.
        """


def restore(
    call: RestoreCall, ports: RestorePorts, gate: Gate | None = None, company: Company | None = None
) -> RestoreReport:
    """Bring a checkpoint back.

    Args:
        call: What the user asked for.
        ports: The outside things.
        gate: Who decides whether it goes on; None lets it.
        company: Who decides it for several workloads, in place of a gate.

    Raises:
        Exception: what the gate or the company raised.
        ObjectMissing, ObjectCorrupt: the checkpoint is not there, or not whole.
        Untrusted: nobody whom this host trusts has signed it; nothing of it was read.
        WrongState: saved files are wanted, and the checkpoint has none.
        FilesChanged: files are not as recorded, and the policies forbid that.
        HostMismatch: pids are taken, or the place of a volume; names what is there.
        RestoreFailed: CRIU refused; nothing was left running.
        FeatureMissing: memory cannot come late on this host.
    """
    clock, late = ports.clock, ports.late
    gate = gate or company
    began = clock.stopwatch()
    if late is not None:
        late.check()
    checkpoint_id = ports.store.resolve(call.ref)
    ports.store.check_trust(checkpoint_id)
    checkpoint = ports.store.load(checkpoint_id).checkpoint
    check_records(checkpoint_id, checkpoint)
    policies = policies_for(call.ref, call.inodes, call.files, checkpoint)
    changes = judge_files(
        call.ref, policies, checkpoint, ports.inspector, made=frozenset(each.path for each in call.made)
    )
    session: RestoreSession | None = None

    def lives() -> bool:
        return session is not None and session.is_committed

    with Undo("the restore") as undo:
        operation = ports.operations.begin(f"restore of {checkpoint_id[:12]}")
        undo.always("end the operation", operation.end)
        if gate is not None:
            gate.begin(operation)
        operation.guard()
        job = call.job or checkpoint.job or JobName(checkpoint_id[:12])
        volumes = ports.volumes.bring(ref=call.ref, job=job, volumes=checkpoint.volumes, operation=operation)
        undo.always("let go of the volumes", volumes.close)
        undo.on_failure("bring the former volumes back", _unless(lives, volumes.undo, volumes.settle))
        saved = fetch_saved(checkpoint_id, checkpoint, policies, operation, ports.store)
        for content, path in volumes.images:
            ports.store.fetch(checkpoint_id, content, path)
        _fetch(checkpoint_id, checkpoint, operation, ports.store, late)
        _check_pids(call, checkpoint, ports.restorer)
        refuse_other_devices(call.ref, call.inodes, volumes.attach())
        carried = tuple(
            (file, f"{operation.staging}/carried-{number}")
            for number, file in enumerate(checkpoint.carried_files)
        )
        put_back = ports.restorer.put_back(carried)
        undo.always("remove what only the restore needed", put_back.tidy)
        undo.on_failure("take back the carried files", _unless(lives, put_back.undo))
        contents = ports.writer.begin(operation)
        undo.on_failure(
            "give the files their former contents", _unless(lives, contents.undo, contents.settle)
        )
        files = ports.inodes.keeper(operation)
        undo.on_failure("give the files their former inodes", _unless(lives, files.undo, files.settle))
        restore_began = clock.stopwatch()
        pages_from = call.pages_from
        if late is not None:
            undo.on_failure("end the way of its memory", _unless(lives, late.close, _all_of(late)))
            pages_from = late.begin(operation)
        session = ports.restorer.session(
            job=job,
            cgroup=_cgroup(call, checkpoint),
            cgroups=checkpoint.workload.cgroups,
            new_pids=call.new_pids,
            trees=checkpoint.workload.trees,
            held=frozenset(inode.path for inode in checkpoint.inodes),
            networks=checkpoint.networks,
            pages_from=pages_from,
            operation=operation,
        )
        undo.on_failure("remove what was restored", session.abort)
        # Not before the session has refused a job that runs: its files would change under it.
        if policies.files is FilesPolicy.SAVED:
            contents.write(
                call.ref,
                saved,
                checkpoint.saved_directories,
                absent=call.absent,
                made=call.made,
                job=job,
            )
        newer = newer_files(changes, policies)
        if newer:
            ports.writer.accept_changed(_image_directories(checkpoint, operation), frozenset(newer))
        if call.inodes is InodePolicy.KEEP:
            files.put_back(
                outside_volumes(checkpoint.inodes, checkpoint.volumes),
                _image_directories(checkpoint, operation),
            )
        at = _instant(checkpoint, ports, hurried=gate is not None and company is None)
        if company is not None:
            at = company.instant(at)
        pids = _add_trees(call, checkpoint, session, operation, at)
        operation.note_phase("restored")
        if company is not None:
            company.restored()
        # Also after a verification: pipes and deleted files get new numbers at every restore.
        seen = () if call.inodes is InodePolicy.IGNORE else checkpoint.inodes
        outcomes = session.keep(seen, files.methods)
        session.hold()
        operation.note_phase("kept")
        warnings = (
            *_clock_warnings(call, checkpoint, clock),
            *contents.warnings,
            *newer_warnings(newer),
            *session.problems,
        )
        told = len(session.problems)
        if gate is None:
            session.commit(origin_of(checkpoint_id, checkpoint, job))
        else:
            held = Held(
                pids=pids,
                cgroup=session.cgroup,
                restore_ns=Nanoseconds(clock.stopwatch() - began),
                warnings=warnings,
            )
            origin = gate.held(held)
            session.commit(origin, gate.let_go)
        resumed_ns = Nanoseconds(clock.stopwatch() - began)
        files.settle()
        contents.settle()
        volumes.settle()
        restore_ns = Nanoseconds(clock.stopwatch() - restore_began)
        lost = None if late is None else late.follow()
    if lost is not None:
        raise lost
    return RestoreReport(
        id=checkpoint_id,
        job=job,
        pid=pids[0],
        pids=pids,
        cgroup=session.cgroup,
        restore_ns=restore_ns,
        total_ns=Nanoseconds(clock.stopwatch() - began),
        resumed_ns=resumed_ns,
        lazy=late is not None,
        file_changes=changes,
        inodes=outcomes,
        warnings=(*warnings, *session.problems[told:]),
    )


def origin_of(checkpoint_id: CheckpointId, checkpoint: Checkpoint, job: JobName) -> Origin:
    """Where a workload came from that is brought back from this checkpoint of a store, as this job."""
    group = checkpoint.group.name if checkpoint.group and job == checkpoint.job else ""
    return Origin(checkpoint=checkpoint_id, group=group)


def _unless(
    lives: Callable[[], bool], undo: Callable[[], None], settle: Callable[[], None] | None = None
) -> Callable[[], None]:
    """Take something back, or settle it where the workload lives."""

    def act() -> None:
        if not lives():
            undo()
        elif settle is not None:
            settle()

    return act


def _all_of(late: LateMemory) -> Callable[[], None]:
    """Bring all memory, and raise why that cannot be."""

    def act() -> None:
        if (lost := late.follow()) is not None:
            raise lost

    return act


def _clock_warnings(call: RestoreCall, checkpoint: Checkpoint, clock: Clock) -> Iterator[str]:
    if behind := realtime_went_back(checkpoint.clocks, clock.realtime()):
        yield (
            f"the wall clock is {behind / SECOND:.1f} s behind what the workload saw last; the time in the "
            "checkpoint counts as none"
        )
    if call.time is not TimePolicy.HOST:
        return
    now = clock.read()
    trees = checkpoint.workload.trees
    if behind := max(monotonic_goes_back(checkpoint.clocks, tree.time_offsets, now) for tree in trees):
        yield (
            f"with --time host CLOCK_MONOTONIC goes back by {behind / SECOND:.1f} s, as this host's is behind: what "
            "waits for an instant of it waits so much longer"
        )


def _cgroup(call: RestoreCall, checkpoint: Checkpoint) -> str:
    """The cgroup that was asked for, else the workload's own; "" for one that is named after the job."""
    workload = checkpoint.workload
    if call.cgroup or call.new_pids or workload.kind is not TargetKind.CGROUP:
        return call.cgroup
    return workload.cgroup


def _image_directories(checkpoint: Checkpoint, operation: Operation) -> tuple[str, ...]:
    return tuple(f"{operation.staging}/{images.root}" for images in checkpoint.image_sets)


def _fetch(
    checkpoint_id: CheckpointId,
    checkpoint: Checkpoint,
    operation: Operation,
    store: CheckpointSource,
    late: LateMemory | None,
) -> None:
    """Bring every byte that the restore needs into the staging directory, verified, but for what comes late."""
    for images in checkpoint.image_sets:
        directory = operation.directory(str(images.root))
        for file in images.files:
            if late is None or not late.has_pages(file):
                store.fetch(checkpoint_id, file, f"{directory}/{file.name}")
        if late is not None:
            for file in late.take(checkpoint_id, images.root, directory, images.files):
                store.fetch(checkpoint_id, file, f"{directory}/{file.name}")
    for number, carried in enumerate(checkpoint.carried_files):
        store.fetch(checkpoint_id, carried.content, f"{operation.staging}/carried-{number}")
    operation.note_phase("fetched")


def _check_pids(call: RestoreCall, checkpoint: Checkpoint, restorer: Restorer) -> None:
    """Refuse when a pid that must come back belongs to somebody else."""
    if call.new_pids:
        return
    taken = restorer.check_pids(checkpoint.workload.trees)
    if taken:
        raise HostMismatch(
            ref=call.ref,
            reasons=taken,
            remedy="End the process that has the pid, or restore with --pids new.",
        )


def _instant(checkpoint: Checkpoint, ports: RestorePorts, *, hurried: bool) -> Clocks:
    """What this host's clocks will read when all trees, of which none is there yet, can go on."""
    tasks = sum(len(tree.processes) for tree in checkpoint.workload.trees)
    there = ByteCount(checkpoint.image_bytes - (ports.late.left_bytes if ports.late else 0))
    # Who holds what is restored wants it to go on as soon as it may.
    return ports.clock.read().later(restore_span(there, tasks, ports.restorer.pace(), hurried=hurried))


def _add_trees(
    call: RestoreCall,
    checkpoint: Checkpoint,
    session: RestoreSession,
    operation: Operation,
    at: Clocks,
) -> tuple[Pid, ...]:
    """Restore and hold every tree; gives the roots' pids on this host in the order of the trees."""
    by_root: dict[Pid, Tree] = {tree.root: tree for tree in checkpoint.workload.trees}
    pids = []
    for images in checkpoint.image_sets:
        tree = by_root[images.root]
        pids.append(
            session.add(
                tree=tree,
                images=f"{operation.staging}/{images.root}",
                options=checkpoint.options,
                external_mounts=checkpoint.workload.external_mounts,
                outside_files=checkpoint.workload.outside_files,
                resumption=resume_clocks(call.time, checkpoint.clocks, tree.time_offsets, at),
                waits=checkpoint.waits,
                timers=checkpoint.timers,
                settings=checkpoint.settings,
            )
        )
    return tuple(pids)
