"""Restore a group: all members of one instant are brought back together, or none of them.

Rules:
  K1  Only an instant of which every member's checkpoint is there is restored.
  K2  No tree is let go by CRIU before those of all members are there: else one would answer for connections whose other
      end is not there yet.
  K3  Nobody takes a step before all are filed. Whatever fails before that takes all of them back, also the death of
      who restores them.
  K4  A member that is lost after that ends the others again: half a group never stays.
  K5  Clocks that agreed when the members stood still agree when they go on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import IntEnum

from ckpt.errors import CkptError, GaveUp, GroupFailed, ObjectMissing, WrongState
from ckpt.flow.group_ports import Ends, Meeting, Together
from ckpt.flow.ports import Clock, Operation, Store
from ckpt.flow.restore import Held, RestoreCall, RestorePorts, restore
from ckpt.model.clocks import Clocks
from ckpt.model.group import GroupRestoreReport, StoredInstant, complete_instants
from ckpt.model.origin import Origin
from ckpt.model.reports import RestoreReport, StoredCheckpoint
from ckpt.units import CheckpointId, JobName, Nanoseconds


class Point(IntEnum):
    """Where they wait for each other, in this order."""

    FETCHED = 0
    RESTORED = 1
    HELD = 2
    FILED = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupRestoreCall:
    """What is wanted: `how` is for each member, whose checkpoint and job take the place of its own."""

    instant: StoredInstant
    how: RestoreCall


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupRestorePorts:
    """The outside things: `member` gives those of one job's restore, in the process that makes it.

    `end` ends a job, if it runs.
    """

    clock: Clock
    together: Together
    member: Callable[[JobName], RestorePorts]
    end: Callable[[JobName], None]


def instant_of(ref: str, store: Store) -> StoredInstant:
    """The complete instant that a checkpoint is of.

    Raises:
        ObjectMissing, AmbiguousRef: no such checkpoint; or a member's is missing, so that the instant is not complete.
        WrongState: it was taken alone.
    """
    checkpoint = store.resolve(ref)
    group = store.load(checkpoint).checkpoint.group
    if group is None:
        raise WrongState(
            subject=f"Checkpoint {checkpoint[:12]}",
            state="of one job alone",
            operation="a restore of a group",
            needed="taken with 'ckpt dump --group'",
            remedy="Leave out --group.",
        )
    found = [each for each in complete_instants(_readable(store)) if each.instant == group.instant]
    if not found:
        raise ObjectMissing(
            place=store.place,
            kind="complete instant",
            name=f"of group {group.name} with {checkpoint[:12]}",
            remedy=f"Checkpoints of {', '.join(group.members)} belong to it, and one at least is missing: restore "
            "another instant, or one job alone, without --group.",
        )
    return found[0]


def newest_instant(group: JobName, store: Store) -> StoredInstant:
    """The newest instant of the group that is complete.

    Raises:
        ObjectMissing: there is none.
    """
    found = [each for each in complete_instants(_readable(store)) if each.name == group]
    if not found:
        raise ObjectMissing(
            place=store.place,
            kind="complete instant of group",
            name=group,
            remedy=f"'ckpt dump --group {group}' takes one; 'ckpt list' shows what there is.",
        )
    return found[-1]


def restore_group(call: GroupRestoreCall, ports: GroupRestorePorts) -> GroupRestoreReport:
    """Bring all members back.

    Raises:
        GroupFailed: one of them could not be: none runs.
        Interrupted: the same.
    """
    began = ports.clock.stopwatch()
    parts = {_job_of(stored): stored for stored in call.instant.checkpoints}

    def work(member: JobName, meeting: Meeting) -> RestoreReport:
        stored = parts[member]
        company = _Together(
            meeting=meeting,
            id=stored.id,
            group=call.instant.name,
            earlier_ns=call.instant.earlier_ns(stored),
        )
        return restore(replace(call.how, ref=stored.id, job=member), ports.member(member), company=company)

    ends = ports.together.run(tuple(parts), work, Point, RestoreReport)
    if ends.failures:
        raise _failed(call.instant.name, tuple(parts), ends, ports)
    return GroupRestoreReport(
        name=call.instant.name,
        instant=call.instant.instant,
        members=tuple(ends.reports[member] for member in parts),
        total_ns=Nanoseconds(ports.clock.stopwatch() - began),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Together:
    """The others, at a restore. Fits ckpt.flow.restore.Company.

    `earlier_ns` is how long this member had stood still when the last one did.
    """

    meeting: Meeting
    id: CheckpointId
    group: JobName
    earlier_ns: Nanoseconds

    def begin(self, operation: Operation) -> None:
        """Nothing is to be noted of it."""

    def instant(self, at: Clocks) -> Clocks:
        # The last one that can go on decides. Who stood still earlier goes on as much earlier, so that the clocks of all
        # are as far from each other as they were: not at all, where they had none of their own.
        common = self.meeting.arrive(Point.FETCHED, at.boottime_ns)
        return at.later(Nanoseconds(common - self.earlier_ns - at.boottime_ns))

    def restored(self) -> None:
        self.meeting.arrive(Point.RESTORED)

    def held(self, held: Held) -> Origin:  # noqa: ARG002 - nobody is told before all are
        self.meeting.arrive(Point.HELD)
        return Origin(checkpoint=self.id, group=self.group)

    def let_go(self) -> None:
        self.meeting.arrive(Point.FILED)


def _failed(
    group: JobName, members: tuple[JobName, ...], ends: Ends[RestoreReport], ports: GroupRestorePorts
) -> GroupFailed:
    first = ends.failures[0]
    outcome = "Nothing of it runs."
    if ends.passed(Point.FILED):
        outcome = f"They had gone on for a moment, and {', '.join(members)} were ended again."
        stuck = [f"{job} could not be: {error.message}" for job in members if (error := _end(job, ports))]
        if stuck:
            outcome = f"They had gone on, and were to be ended again; {'; '.join(stuck)}"
    return GroupFailed(
        group=group,
        done="restored",
        member=first.member,
        reason=first.message if first.slug != GaveUp.slug else "its process was told to end.",
        outcome=outcome,
        remedy=first.hint,
        their_slug=first.slug,
        their_exit_code=first.exit_code,
    )


def _end(job: JobName, ports: GroupRestorePorts) -> CkptError | None:
    try:
        ports.end(job)
    except CkptError as error:
        return error
    return None


def _job_of(stored: StoredCheckpoint) -> JobName:
    assert stored.checkpoint.job is not None  # it is one of the members
    return stored.checkpoint.job


def _readable(store: Store) -> tuple[StoredCheckpoint, ...]:
    # One that cannot be read makes its own instant incomplete, and no other.
    return store.list(on_problem=lambda _problem: None)
