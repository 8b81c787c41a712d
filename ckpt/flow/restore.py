"""Restore a checkpoint: verify everything, restore every tree and hold it, then let all go on at once.

Rules:
  R1  Nothing is started before every byte has been fetched and verified and the files have been compared.
  R2  No tree runs before all trees are restored; a failure before that leaves nothing.
  R3  commit() is the only point of no return.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from ckpt.errors import FilesChanged, HostMismatch
from ckpt.flow.ports import (
    Clock,
    Inspector,
    Operation,
    Operations,
    Restorer,
    RestoreSession,
    Store,
)
from ckpt.flow.undo import Undo
from ckpt.model.checkpoint import Checkpoint
from ckpt.model.clocks import TimePolicy, resume_clocks
from ckpt.model.inodes import IDENTITY_DIFFERENCES, FileChange, InodePolicy
from ckpt.model.reports import RestoreReport
from ckpt.model.workload import TargetKind, Tree
from ckpt.units import CheckpointId, JobName, Nanoseconds, Pid

REASONS_MAX: Final = 20
"""How many changed files one error names; the count is always given."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreCall:
    """What the user asked for. `job` None takes the checkpoint's own; `cgroup` "" one named after the job."""

    ref: str
    job: JobName | None
    time: TimePolicy
    inodes: InodePolicy
    new_pids: bool
    cgroup: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RestorePorts:
    """The outside things that a restore needs."""

    clock: Clock
    operations: Operations
    inspector: Inspector
    restorer: Restorer
    store: Store


def restore(call: RestoreCall, ports: RestorePorts) -> RestoreReport:
    """Bring a checkpoint back.

    Raises:
        ObjectMissing, ObjectCorrupt: the checkpoint is not there, or not whole.
        Untrusted: nobody whom this host trusts has signed it; nothing of it was read.
        FilesChanged: files are not as recorded, and the inode policy forbids that.
        HostMismatch: pids are taken; names who has them.
        RestoreFailed: CRIU refused; nothing was left running.
    """
    clock = ports.clock
    began = clock.stopwatch()
    checkpoint_id = ports.store.resolve(call.ref)
    ports.store.check_trust(checkpoint_id)
    checkpoint = ports.store.load(checkpoint_id).checkpoint
    changes, warnings = _judge_files(call, checkpoint, ports.inspector)
    with Undo("the restore") as undo:
        operation = ports.operations.begin(f"restore of {checkpoint_id[:12]}")
        undo.always("end the operation", operation.end)
        operation.guard()
        _fetch(checkpoint_id, checkpoint, operation, ports.store)
        _check_pids(call, checkpoint, ports.restorer)
        carried = tuple(
            (file, f"{operation.staging}/carried-{number}")
            for number, file in enumerate(checkpoint.carried_files)
        )
        put_back = ports.restorer.put_back(carried)
        undo.always("remove what only the restore needed", put_back.tidy)
        undo.on_failure("take back the carried files", put_back.undo)
        job = call.job or checkpoint.job or JobName(checkpoint_id[:12])
        restore_began = clock.stopwatch()
        session = ports.restorer.session(
            job=job,
            cgroup=_cgroup(call, checkpoint),
            cgroups=checkpoint.workload.cgroups,
            new_pids=call.new_pids,
            trees=checkpoint.workload.trees,
            held=frozenset(inode.path for inode in checkpoint.inodes),
            operation=operation,
        )
        undo.on_failure("remove what was restored", session.abort)
        pids = _add_trees(call, checkpoint, session, operation, clock)
        operation.note_phase("restored")
        session.commit(checkpoint_id)
        restore_ns = Nanoseconds(clock.stopwatch() - restore_began)
    return RestoreReport(
        id=checkpoint_id,
        job=job,
        pid=pids[0],
        pids=pids,
        cgroup=session.cgroup,
        restore_ns=restore_ns,
        total_ns=Nanoseconds(clock.stopwatch() - began),
        file_changes=changes,
        warnings=warnings + session.problems,
    )


def _cgroup(call: RestoreCall, checkpoint: Checkpoint) -> str:
    """The cgroup that was asked for, else the workload's own; "" for one that is named after the job."""
    workload = checkpoint.workload
    if call.cgroup or call.new_pids or workload.kind is not TargetKind.CGROUP:
        return call.cgroup
    return workload.cgroup


def _judge_files(
    call: RestoreCall, checkpoint: Checkpoint, inspector: Inspector
) -> tuple[tuple[FileChange, ...], tuple[str, ...]]:
    """Compare the files with the recorded ones and apply the policy: what changed, and what to tell."""
    if call.inodes is InodePolicy.IGNORE:
        return (), ()
    # What travels in the checkpoint is written back, whatever is there.
    carried = {file.path for file in checkpoint.carried_files}
    changes = inspector.differences(tuple(inode for inode in checkpoint.inodes if inode.path not in carried))
    forbidden = [
        change
        for change in changes
        if call.inodes is InodePolicy.VERIFY or change.difference not in IDENTITY_DIFFERENCES
    ]
    if forbidden:
        raise FilesChanged(
            ref=call.ref,
            count=len({change.path for change in forbidden}),
            reasons=tuple(str(change) for change in forbidden[:REASONS_MAX]),
            remedy="Put the files back as they were, or restore with --inodes ignore at your own risk.",
        )
    moved = sorted({change.path for change in changes})
    if not moved:
        return (), ()
    named = ", ".join(moved[:3]) + (" …" if len(moved) > 3 else "")
    warning = (
        f"inode numbers cannot be kept yet: {len(moved)} file(s) have another inode than the workload saw, "
        f"and it will see the new one: {named}"
    )
    return changes, (warning,)


def _fetch(checkpoint_id: CheckpointId, checkpoint: Checkpoint, operation: Operation, store: Store) -> None:
    """Bring every byte that the restore needs into the staging directory, verified."""
    for images in checkpoint.image_sets:
        directory = operation.directory(str(images.root))
        for file in images.files:
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


def _add_trees(
    call: RestoreCall,
    checkpoint: Checkpoint,
    session: RestoreSession,
    operation: Operation,
    clock: Clock,
) -> tuple[Pid, ...]:
    """Restore and hold every tree; gives the roots' pids on this host in the order of the trees."""
    by_root: dict[Pid, Tree] = {tree.root: tree for tree in checkpoint.workload.trees}
    now = clock.read()
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
                resumption=resume_clocks(call.time, checkpoint.clocks, tree.time_offsets, now),
            )
        )
    return tuple(pids)
