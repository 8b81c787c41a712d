"""Which identities must be shown to restored tasks, and what came of it. Nothing here touches the machine.

Rules:
- What is as it was is never taken away: where two records want one identity, the file that has it keeps it.
- No file is claimed to be kept that was not compared: what the tasks were asked decides, not what was planned.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ckpt.host.inodes.matching import Match, is_path
from ckpt.host.virtual.table import IdentityTable
from ckpt.model.inodes import Identity, InodeMethod, InodeOutcome
from ckpt.units import Pid

NAMED_MAX = 3
"""How many files one sentence names; the count is always given."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is to be shown. `only_descriptors`: no file of it can be reached by a path, only through `holders`."""

    table: IdentityTable
    only_descriptors: bool
    holders: frozenset[Pid]


def plan_for(matches: Sequence[Match]) -> Plan:
    """The table that gives back as many identities as can be."""
    shown: dict[Identity, Identity] = {}
    taken: set[Identity] = set()
    for match in sorted(matches, key=lambda match: match.is_moved):
        wanted = match.record.identity
        if match.found not in shown and wanted not in taken:
            shown[match.found] = wanted
            taken.add(wanted)
    moved = [match for match in matches if match.is_moved]
    return Plan(
        table=IdentityTable.from_pairs(shown.items()),
        only_descriptors=not any(is_path(match.record) for match in moved),
        holders=frozenset(match.pid for match in moved),
    )


def outcomes(
    matches: Iterable[Match],
    methods: Mapping[str, InodeMethod],
    *,
    seen: Mapping[Match, Identity],
    is_virtual: bool,
) -> tuple[InodeOutcome, ...]:
    """What each file shows: as the tasks said (`seen`), else what it really has."""
    return tuple(
        _outcome(match, methods, seen.get(match, match.found), is_virtual=is_virtual) for match in matches
    )


def unkept(
    matches: Iterable[Match], reason: str, *, seen: Mapping[Match, Identity] | None = None
) -> tuple[str, ...]:
    """A sentence about the files that show another identity than they did; none if there is none.

    With what the tasks `seen`, files for which none was asked are left out.
    """
    paths = [
        match.record.path
        for match in matches
        if match.is_moved
        and (seen is None or seen.get(match, match.record.identity) != match.record.identity)
    ]
    return _about(paths, f"show another identity than the workload saw: {{}} ({reason})")


def unasked(matches: Iterable[Match], seen: Mapping[Match, Identity]) -> tuple[str, ...]:
    """A sentence about the moved files for which no task was asked; none if there is none."""
    paths = [match.record.path for match in matches if match.is_moved and match not in seen]
    return _about(
        paths, "may show another identity than the workload saw: {} (its process could not be asked)"
    )


def _about(paths: list[str], what: str) -> tuple[str, ...]:
    if not paths:
        return ()
    named = ", ".join(paths[:NAMED_MAX]) + (" …" if len(paths) > NAMED_MAX else "")
    return (f"{len(paths)} file(s) {what.replace('{}', named, 1)}",)


def half_kept(matches: Iterable[Match], methods: Mapping[str, InodeMethod], reason: str) -> tuple[str, ...]:
    """What unkept() says where a file system of ours shows inode numbers: the devices are others in any case."""
    shown: dict[bool, list[Match]] = {True: [], False: []}
    for match in matches:
        shown[methods.get(match.record.path) is InodeMethod.FUSE].append(match)
    return (
        *unkept(shown[True], "the inode number is the same, the device is not"),
        *unkept(shown[False], reason),
    )


def _outcome(
    match: Match, methods: Mapping[str, InodeMethod], seen: Identity, *, is_virtual: bool
) -> InodeOutcome:
    recorded = match.record.identity
    if seen != recorded:
        is_shown = methods.get(match.record.path) is InodeMethod.FUSE and seen.inode == recorded.inode
        method = InodeMethod.FUSE if is_shown else InodeMethod.NONE
    elif match.found == recorded:
        method = methods.get(match.record.path, InodeMethod.SAME)
    else:
        method = InodeMethod.VIRTUAL if is_virtual else InodeMethod.NONE
    return InodeOutcome(
        path=match.record.path, recorded=recorded, found=match.found, seen=seen, method=method
    )
