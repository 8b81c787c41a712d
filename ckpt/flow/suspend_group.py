"""Suspend a group and bring it back: its jobs end at one instant, and come back together or not at all.

Rules: those of suspend.py, for all of them at once. Where only some have lived since, nothing is brought back: half a
group never stays.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

from ckpt.errors import WrongState
from ckpt.flow.group_dump import GroupDumpCall, GroupDumpPorts, dump_group
from ckpt.flow.group_restore import GroupRestoreCall, GroupRestorePorts, instant_of, restore_group
from ckpt.flow.ports import Clock, Store
from ckpt.flow.restore import RestoreCall
from ckpt.flow.suspend import (
    SuspendCall,
    SuspendedJobs,
    checkpoint_of,
    intend,
    lived_since,
    look_again,
    settle,
)
from ckpt.model.checkpoint import GroupInstant
from ckpt.model.group import GroupRestoreReport
from ckpt.model.suspended import Owner, Suspended
from ckpt.units import JobName


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupSuspendCall:
    """What is wanted: one call for each member that runs, in the order of the instant, all into one store."""

    instant: GroupInstant
    calls: tuple[SuspendCall, ...]

    @property
    def owner(self) -> Owner:
        """Who brings the group back: ckpt, unless one of its jobs is its caller's."""
        return Owner.CALLER if any(each.owner is Owner.CALLER for each in self.calls) else Owner.CKPT


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupSuspendPorts:
    """The outside things that it needs."""

    clock: Clock
    suspended: SuspendedJobs
    dump: GroupDumpPorts
    store: Store


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupResumePorts:
    """The outside things that bringing back needs."""

    suspended: SuspendedJobs
    restore: GroupRestorePorts
    store: Store


def suspend_group(call: GroupSuspendCall, ports: GroupSuspendPorts) -> tuple[Suspended, ...]:
    """Take a checkpoint of all members at one instant, end them once all are durable, and remember them.

    Raises:
        NoSuchTarget: one of them has ended.
        Locked: another ckpt process is at one.
        GroupFailed: one of them could not be dumped: all run on, and nothing is remembered.
    """
    suspended = ports.suspended
    with _locked([each.job for each in call.calls], suspended):
        records: list[Suspended] = []
        wanted = GroupDumpCall(instant=call.instant, calls=tuple(each.dump for each in call.calls))
        try:
            records.extend(intend(each, suspended, ports.clock) for each in call.calls)
            report = dump_group(wanted, ports.dump)
        except BaseException:
            records = [look_again(each, suspended, ports.store) for each in records]
            if not records or any(each.checkpoint is None for each in records):
                raise
        else:
            taken = {each.checkpoint.job: each.id for each in report.members}
            records = [replace(each, checkpoint=taken[each.job]) for each in records]
        for record in records:
            settle(record, call.owner, suspended)
    return tuple(records)


def bring_group_back(jobs: Sequence[JobName], ports: GroupResumePorts) -> GroupRestoreReport | None:
    """Restore the jobs of a group that were suspended together, and forget that they were; None if all have lived since.

    Raises:
        WrongState: only some have; or the host went down before all of their checkpoints were durable: these are
            forgotten then.
        ObjectMissing: a checkpoint of the instant is missing.
        GroupFailed: one could not be restored: none runs, and all stay suspended.
    """
    suspended = ports.suspended
    with _locked(jobs, suspended):
        records = [record for job in jobs if (record := suspended.find(job)) is not None]
        found = [_found(record, suspended, ports.store) for record in records]
        if all(each.has_lived for each in found):
            _forget(records, suspended)
            return None
        if lived := [each.record.job for each in found if each.has_lived]:
            raise WrongState(
                subject=f"Job {lived[0]}",
                state="running, or has run since",
                operation="bringing its group back",
                needed="suspended like the others",
                remedy="Restore the others alone: 'ckpt restore JOB'.",
            )
        missing = [each.record for each in found if each.record.checkpoint is None]
        if missing:
            _forget(records, suspended)
            raise WrongState(
                subject=f"Job {missing[0].job}",
                state="ended",
                operation="bringing its group back",
                needed="checkpointed before the host went down",
                remedy="'ckpt restore --group' brings its newest complete instant back.",
            )
        first = found[0].record
        how = RestoreCall(ref="", job=None, time=first.time, inodes=first.inodes, new_pids=False, cgroup="")
        instant = instant_of(str(first.checkpoint), ports.store)
        report = restore_group(GroupRestoreCall(instant=instant, how=how), ports.restore)
        _forget(records, suspended)
    return report


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """A record with its checkpoint, and whether its job has lived since."""

    record: Suspended
    has_lived: bool


def _found(record: Suspended, suspended: SuspendedJobs, store: Store) -> _Found:
    life = suspended.life(record.job)
    checkpoint = record.checkpoint or checkpoint_of(record, life, store)
    has_lived = life is not None and lived_since(record, checkpoint, life)
    return _Found(record=replace(record, checkpoint=checkpoint), has_lived=has_lived)


def _forget(records: Sequence[Suspended], suspended: SuspendedJobs) -> None:
    for record in records:
        suspended.remove(record.job)


@contextmanager
def _locked(jobs: Sequence[JobName], suspended: SuspendedJobs) -> Iterator[None]:
    with ExitStack() as held:
        for job in sorted(jobs):
            held.enter_context(suspended.lock(job))
        yield
