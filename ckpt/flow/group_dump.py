"""Dump a group: all its jobs stand still together, each in a checkpoint of its own; all of them, or none.

Rules:
  J1  No CRIU begins before the last member stands still, so that nothing that one of them does is seen by half of them.
  J2  No connection is unlocked, and nobody thawed, before the last member is dumped.
  J3  With --stop nobody is killed before the last checkpoint is durable.
  J4  If one of them fails, all run on, and the checkpoints that were durable by then are removed. Where that is not
      possible any more the instant lacks a member, and what lacks one is never restored as a group.
  J5  Once all are durable there is no way back: with --stop a member whose process is lost then is ended, too, as half
      a group never stays.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

from ckpt.errors import CkptError, GaveUp, GroupFailed
from ckpt.flow.dump import DumpCall, DumpPorts, dump
from ckpt.flow.group_ports import Ends, Meeting, Together
from ckpt.flow.ports import Clock
from ckpt.model.checkpoint import GroupInstant
from ckpt.model.group import GroupDumpReport, of_instant
from ckpt.model.reports import DumpReport, StoredCheckpoint
from ckpt.units import CheckpointId, JobName, Nanoseconds


class Point(IntEnum):
    """Where they wait for each other, in this order."""

    READY = 0
    FROZEN = 1
    DUMPED = 2
    TAKEN = 3
    DURABLE = 4


class Instants(Protocol):
    """The store, as far as an instant is taken back."""

    def list(self) -> tuple[StoredCheckpoint, ...]:
        """All checkpoints, oldest first."""

    def take_back(self, checkpoints: tuple[CheckpointId, ...]) -> None:
        """Remove them, and all that is kept for them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupDumpCall:
    """What is wanted: one call for each member, all of them of the jobs that `instant` names, and in their order."""

    instant: GroupInstant
    calls: tuple[DumpCall, ...]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupDumpPorts:
    """The outside things: `member` gives those of one job's dump, in the process that makes it.

    `finish` ends a job, if it runs, and notes that it lives on in this checkpoint.
    """

    clock: Clock
    together: Together
    instants: Instants
    member: Callable[[JobName], DumpPorts]
    finish: Callable[[JobName, CheckpointId], None]


def dump_group(call: GroupDumpCall, ports: GroupDumpPorts) -> GroupDumpReport:
    """Take a checkpoint of each member, all at one instant.

    Raises:
        GroupFailed: one of them could not: all run on, and there are no checkpoints of this instant, unless it says
            otherwise.
        Interrupted: the same.
    """
    began = ports.clock.stopwatch()
    members = call.instant.members
    wanted = dict(zip(members, call.calls, strict=True))

    def work(member: JobName, meeting: Meeting) -> DumpReport:
        return dump(wanted[member], ports.member(member), _Together(instant=call.instant, meeting=meeting))

    try:
        ends = ports.together.run(members, work, Point, DumpReport)
    except BaseException:
        _take_back(call, ports)
        raise
    if ends.failures:
        raise _failed(call, ends, ports)
    stood_still = ends.numbers(Point.FROZEN)
    return GroupDumpReport(
        name=call.instant.name,
        instant=call.instant.instant,
        members=tuple(ends.reports[member] for member in members),
        skew_ns=Nanoseconds(max(stood_still) - min(stood_still)),
        total_ns=Nanoseconds(ports.clock.stopwatch() - began),
        warnings=call.warnings,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Together:
    """The others, at a dump. Fits ckpt.flow.dump.Company."""

    instant: GroupInstant
    meeting: Meeting

    def freezes(self) -> None:
        self.meeting.arrive(Point.READY)

    def stands_still(self, since: Nanoseconds) -> None:
        self.meeting.arrive(Point.FROZEN, since)

    def dumped(self) -> None:
        self.meeting.arrive(Point.DUMPED)

    def taken(self) -> None:
        self.meeting.arrive(Point.TAKEN)

    def durable(self) -> None:
        self.meeting.arrive(Point.DURABLE)


def _failed(call: GroupDumpCall, ends: Ends[DumpReport], ports: GroupDumpPorts) -> GroupFailed:
    first = ends.failures[0]
    if not ends.passed(Point.DURABLE):
        _take_back(call, ports)
        outcome = "All of them run on, and nothing of it was kept."
    elif any(each.stop for each in call.calls):
        outcome = _finish(call, ends, ports)
    else:
        outcome = "All checkpoints are durable, and they run on."
    return GroupFailed(
        group=call.instant.name,
        done="dumped as wanted" if ends.passed(Point.DURABLE) else "dumped",
        member=first.member,
        reason=first.message if first.slug != GaveUp.slug else "its process was told to end.",
        outcome=outcome,
        remedy=first.hint,
        their_slug=first.slug,
        their_exit_code=first.exit_code,
    )


def _finish(call: GroupDumpCall, ends: Ends[DumpReport], ports: GroupDumpPorts) -> str:
    """End those that were not: the instant is whole, and all that is left of the others. Gives a sentence of it."""
    stuck = []
    for stored in of_instant(ports.instants.list(), call.instant.instant):
        job = stored.checkpoint.job
        if job is None or job in ends.reports:
            continue
        try:
            ports.finish(job, stored.id)
        except CkptError as error:
            stuck.append(f"{job} could not be: {error.message}")
    if stuck:
        return f"All checkpoints are durable, and all were to be ended; {'; '.join(stuck)}"
    return "All checkpoints are durable, and all of them were ended."


def _take_back(call: GroupDumpCall, ports: GroupDumpPorts) -> None:
    found = tuple(stored.id for stored in of_instant(ports.instants.list(), call.instant.instant))
    if found:
        ports.instants.take_back(found)
