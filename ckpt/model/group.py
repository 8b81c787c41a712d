"""Groups: jobs that are frozen together and dumped at one instant, and brought back together or not at all.

Rule: an instant counts only where the checkpoint of every member is there. Which of them there are is asked of the
store, each time: nothing else says that an instant is complete.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from ckpt.model.reports import DumpReport, RestoreReport, StoredCheckpoint
from ckpt.units import CheckpointId, JobName, Nanoseconds

MEMBERS_MAX: Final = 256
"""How many jobs a group may have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberFailure:
    """Why one member could not: what its error says."""

    member: JobName
    slug: str
    message: str
    hint: str
    exit_code: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredInstant:
    """A complete instant in a store: the checkpoint of each member, in the order of the members."""

    name: JobName
    instant: str
    checkpoints: tuple[StoredCheckpoint, ...]

    @property
    def created_ns(self) -> Nanoseconds:
        """When the last member stood still, on CLOCK_REALTIME."""
        return Nanoseconds(max(each.checkpoint.created_ns for each in self.checkpoints))

    def earlier_ns(self, part: StoredCheckpoint) -> Nanoseconds:
        """How long this member had stood still when the last one did."""
        last = max(each.checkpoint.clocks.monotonic_ns for each in self.checkpoints)
        return Nanoseconds(last - part.checkpoint.clocks.monotonic_ns)


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupDumpReport:
    """A finished dump of a group. `skew_ns` lies between the freeze of its first member and that of its last."""

    name: JobName
    instant: str
    members: tuple[DumpReport, ...]
    skew_ns: Nanoseconds
    total_ns: Nanoseconds
    warnings: tuple[str, ...]

    @property
    def frozen_ns(self) -> Nanoseconds:
        """How long the member stood still that did so longest."""
        return Nanoseconds(max(each.checkpoint.frozen_ns for each in self.members))


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupRestoreReport:
    """A finished restore of a group."""

    name: JobName
    instant: str
    members: tuple[RestoreReport, ...]
    total_ns: Nanoseconds


def complete_instants(checkpoints: Iterable[StoredCheckpoint]) -> tuple[StoredInstant, ...]:
    """The instants of which every member's checkpoint is there, oldest first.

    One that has two of a member, or whose checkpoints do not agree on the members, is none: nobody knows what it was.
    """
    found = []
    for (name, instant), each in _by_instant(checkpoints).items():
        parts = {stored.checkpoint.job: stored for stored in each}
        claims = {stored.checkpoint.group.members for stored in each if stored.checkpoint.group is not None}
        members = next(iter(claims))
        if len(claims) == 1 and len(parts) == len(each) and parts.keys() == set(members):
            found.append(
                StoredInstant(
                    name=name, instant=instant, checkpoints=tuple(parts[member] for member in members)
                )
            )
    return tuple(sorted(found, key=lambda each: (each.created_ns, each.instant)))


def needed_by_instants(
    checkpoints: Iterable[StoredCheckpoint], kept: Iterable[CheckpointId]
) -> Mapping[CheckpointId, str]:
    """What must stay beside what is kept, and why: instants stay as a whole, and the newest complete one of each group."""
    everything = tuple(checkpoints)
    stay = set(kept)
    instants = complete_instants(everything)
    newest = {each.name: each for each in instants}
    reasons: dict[CheckpointId, str] = {}
    for each in instants:
        ids = [stored.id for stored in each.checkpoints]
        if newest[each.name] is each:
            reasons |= dict.fromkeys(ids, f"newest of group {each.name}")
        elif stay.intersection(ids):
            reasons |= dict.fromkeys(ids, f"group {each.name} has one of its instant")
    return {checkpoint: why for checkpoint, why in reasons.items() if checkpoint not in stay}


def of_instant(checkpoints: Iterable[StoredCheckpoint], instant: str) -> Iterator[StoredCheckpoint]:
    """The checkpoints that were taken at this instant of a group."""
    for stored in checkpoints:
        if stored.checkpoint.group is not None and stored.checkpoint.group.instant == instant:
            yield stored


def _by_instant(
    checkpoints: Iterable[StoredCheckpoint],
) -> Mapping[tuple[JobName, str], list[StoredCheckpoint]]:
    found: dict[tuple[JobName, str], list[StoredCheckpoint]] = {}
    for stored in checkpoints:
        group = stored.checkpoint.group
        if group is not None:
            found.setdefault((group.name, group.instant), []).append(stored)
    return found
