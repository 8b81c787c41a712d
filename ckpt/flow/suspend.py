"""End a job with a checkpoint, remembering it, and bring it back later: around a reboot.

Rules:
  S1  What is to come back is written down before the job can end, and forgotten only when it runs again or nothing of
      it can come: a crash anywhere in between loses no job that has a checkpoint.
  S2  A job is never brought back twice: one that runs, or has lived since it was suspended, is left as it is.
  S3  A job that cannot be checkpointed runs on.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Protocol

from ckpt.errors import FormatUnknown, NoSuchTarget, ObjectCorrupt, ObjectMissing, WrongState
from ckpt.flow.dump import DumpCall, DumpPorts, dump
from ckpt.flow.ports import Clock, Jobs, Store
from ckpt.flow.restore import RestoreCall, RestorePorts, restore
from ckpt.flow.resume import ResumeCall, Resumed, resume
from ckpt.model.clocks import TimePolicy
from ckpt.model.inodes import InodePolicy
from ckpt.model.supervision import Reason
from ckpt.model.suspended import Life, Owner, Suspended
from ckpt.units import CheckpointId, JobName


class SuspendedJobs(Protocol):
    """What was suspended on this host, and what its jobs do."""

    def lock(self, job: JobName) -> AbstractContextManager[None]:
        """Be the only one who suspends this job or brings it back.

        Raises:
            Locked: somebody else does; names its pid.
        """

    def find(self, job: JobName) -> Suspended | None:
        """What was written down; None for nothing.

        Raises:
            ObjectCorrupt: it cannot be read.
        """

    def save(self, record: Suspended) -> None:
        """Write it down; durable when this returns.

        Raises:
            NoSpace, OsRefused: it cannot be written.
        """

    def remove(self, job: JobName) -> None:
        """Forget it; durable, and nothing if there is none."""

    def life(self, job: JobName) -> Life | None:
        """The job as it is now; None if there is none, or its record cannot be read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SuspendCall:
    """The dump that ends the job, into the store at this place; how it is to come back, and who brings it back."""

    job: JobName
    store: str
    dump: DumpCall
    owner: Owner = Owner.CKPT
    time: TimePolicy = TimePolicy.SUSPEND
    inodes: InodePolicy = InodePolicy.KEEP


@dataclass(frozen=True, slots=True, kw_only=True)
class SuspendPorts:
    """The outside things that it needs."""

    clock: Clock
    suspended: SuspendedJobs
    dump: DumpPorts


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumePorts:
    """The outside things that bringing back needs."""

    suspended: SuspendedJobs
    restore: RestorePorts
    store: Store
    jobs: Jobs


def suspend(call: SuspendCall, ports: SuspendPorts) -> Suspended:
    """Take a checkpoint of the job, which ran a moment ago, end it once that is durable, and remember it.

    One that another checkpoint has ended meanwhile is remembered with that. What its caller brings back is not
    remembered in the end.

    Raises:
        NoSuchTarget: there is no such job, or it has ended by itself.
        Locked: another ckpt process is at it.
        CkptError: what a dump raises: the job runs on, and nothing is remembered.
    """
    with ports.suspended.lock(call.job):
        record = intend(call, ports.suspended, ports.clock)
        if record.checkpoint is None:
            try:
                record = replace(record, checkpoint=dump(call.dump, ports.dump).id)
            except BaseException:
                record = look_again(record, ports.suspended, ports.dump.store)
                if record.checkpoint is None:
                    raise
        settle(record, call.owner, ports.suspended)
    return record


def intend(call: SuspendCall, suspended: SuspendedJobs, clock: Clock) -> Suspended:
    """Write down that the job is to be suspended; with its checkpoint, if another one has ended it meanwhile.

    Raises:
        NoSuchTarget: there is no such job, or it has ended by itself.
    """
    life = suspended.life(call.job)
    if life is None or not (life.runs or life.stopped_by):
        raise NoSuchTarget(kind="running job", name=call.job, remedy="'ckpt ps' lists the jobs.")
    record = Suspended(
        job=call.job,
        store=call.store,
        checkpoint=None if life.runs else life.stopped_by,
        began_ns=life.began_ns,
        since_ns=clock.realtime(),
        time=call.time,
        inodes=call.inodes,
    )
    suspended.save(record)
    return record


def look_again(record: Suspended, suspended: SuspendedJobs, store: Store) -> Suspended:
    """The record after a dump that failed: with the checkpoint that has ended the job all the same, or forgotten."""
    life = suspended.life(record.job)
    if life is not None and not life.runs:
        record = replace(record, checkpoint=checkpoint_of(record, life, store))
    if record.checkpoint is None:
        suspended.remove(record.job)
    return record


def settle(record: Suspended, owner: Owner, suspended: SuspendedJobs) -> None:
    """The job has ended, and lives on in its checkpoint: remember that, unless its caller brings it back."""
    match owner:
        case Owner.CKPT:
            suspended.save(record)
        case Owner.CALLER:
            suspended.remove(record.job)


def bring_back(job: JobName, ports: ResumePorts, *, older: bool) -> Resumed | None:
    """Restore a job that was suspended, and forget that it was; None if it runs, or has lived since then.

    Where its checkpoint is damaged and `older` ones may do, the newest that is whole is taken.

    Raises:
        NoSuchTarget: it was not suspended.
        WrongState: the host went down before its checkpoint was durable; it is forgotten.
        Locked: another ckpt process is at it.
        CkptError: what a restore raises: nothing runs, and it stays suspended.
    """
    suspended = ports.suspended
    with suspended.lock(job):
        record = suspended.find(job)
        if record is None:
            raise NoSuchTarget(kind="suspended job", name=job, remedy="'ckpt resume --list' lists them.")
        life = suspended.life(job)
        checkpoint = record.checkpoint or checkpoint_of(record, life, ports.store)
        if life is not None and lived_since(record, checkpoint, life):
            suspended.remove(job)
            return None
        if checkpoint is None:
            suspended.remove(job)
            raise WrongState(
                subject=f"Job {job}",
                state="ended",
                operation="bringing it back",
                needed="checkpointed before the host went down",
                remedy="'ckpt list' lists its older checkpoints.",
            )
        found = _restored(record, checkpoint, ports, older=older)
        suspended.remove(job)
    return found


def go_on(call: ResumeCall, ports: ResumePorts) -> Resumed | None:
    """Restore a job that ran when the host went down, from its newest checkpoint that is whole.

    None: it runs, or has none.

    Raises:
        Locked: another ckpt process is at it.
        CkptError: what flow/resume.py raises.
    """
    with ports.suspended.lock(call.job):
        life = ports.suspended.life(call.job)
        if life is not None and life.runs:
            return None
        return resume(call, ports.restore, ports.store, ports.jobs)


def checkpoint_of(record: Suspended, life: Life | None, store: Store) -> CheckpointId | None:
    """The checkpoint that has ended the job since the record was written; None if there is none."""
    if life is not None and life.stopped_by is not None and life.began_ns <= record.since_ns:
        return life.stopped_by
    mine = [
        stored.id
        for stored in store.list(on_problem=lambda _problem: None)
        if stored.checkpoint.job == record.job
        and stored.checkpoint.message == Reason.SUSPEND
        and stored.checkpoint.created_ns >= record.since_ns
    ]
    return mine[-1] if mine else None


def lived_since(record: Suspended, checkpoint: CheckpointId | None, life: Life) -> bool:
    """Whether the job runs, or was restored or started anew after it was suspended, whatever became of it."""
    if life.runs or life.began_ns > record.since_ns:
        return True
    # The clock of this host may have been wrong when it was restored: before the network had told it better.
    return checkpoint is not None and life.restored_from == checkpoint


def _restored(record: Suspended, checkpoint: CheckpointId, ports: ResumePorts, *, older: bool) -> Resumed:
    wanted = RestoreCall(
        ref=checkpoint,
        job=record.job,
        time=record.time,
        inodes=record.inodes,
        new_pids=False,
        cgroup="",
    )
    try:
        return Resumed(report=restore(wanted, ports.restore), damaged=())
    except (ObjectMissing, ObjectCorrupt, FormatUnknown) as damage:
        if not older:
            raise
        call = ResumeCall(job=record.job, time=record.time, inodes=record.inodes)
        found = resume(call, ports.restore, ports.store, ports.jobs)
        if found is None:
            raise
        return replace(found, damaged=found.damaged or (damage.message,))
