"""Let a group go on from its newest instant that is complete and whole, as one of its jobs asks for.

Rules:
- The newest complete instant decides: a job that it does not have had ended by then, or had not begun, and is started.
- An instant of which a checkpoint is damaged is told, and the next older one is tried.
- Never as if there were none: where all are damaged, or one that cannot be read may be of this group, that is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from ckpt.errors import (
    FormatUnknown,
    GroupFailed,
    ObjectCorrupt,
    ObjectMissing,
    WrongState,
)
from ckpt.flow.group_restore import GroupRestoreCall, GroupRestorePorts, restore_group
from ckpt.flow.restore import RestoreCall
from ckpt.model.group import GroupRestoreReport, complete_instants
from ckpt.model.reports import Problem, StoredCheckpoint
from ckpt.units import JobName


class Instants(Protocol):
    """A store, as far as its checkpoints are listed."""

    def list(self, on_problem: Callable[[Problem], None] | None = None) -> tuple[StoredCheckpoint, ...]:
        """All checkpoints, oldest first; `on_problem` is told of each that cannot be read, and is left out."""


_DAMAGED: Final = frozenset((ObjectCorrupt.slug, ObjectMissing.slug, FormatUnknown.slug))


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupResumed:
    """What was restored; `damaged` has a sentence for each newer instant that could not be."""

    report: GroupRestoreReport
    damaged: tuple[str, ...]


def resume_group(
    job: JobName, group: JobName, how: RestoreCall, ports: GroupRestorePorts, store: Instants
) -> GroupResumed | None:
    """Restore the newest complete instant of the group; None if there is none, or `job` is not in it.

    Raises:
        ObjectCorrupt: there are some, and none of them is whole.
        GroupFailed: a member could not be restored, for another reason: none runs.
    """
    unread: list[Problem] = []
    found = store.list(on_problem=unread.append)
    instants = [each for each in complete_instants(found) if each.name == group]
    damaged = [f"checkpoint {each.subject[:12]} cannot be read: {each.message}" for each in unread]
    for instant in reversed(instants):
        if all(stored.checkpoint.job != job for stored in instant.checkpoints):
            if instant is instants[-1]:
                return None
            break
        try:
            report = restore_group(GroupRestoreCall(instant=instant, how=how), ports)
        except GroupFailed as error:
            if error.their_slug not in _DAMAGED:
                raise
            damaged.append(f"instant {instant.instant} of group {group} is not whole: {error.reason}")
        else:
            return GroupResumed(report=report, damaged=tuple(damaged))
    if damaged:
        raise ObjectCorrupt(
            kind="group",
            name=group,
            reason=f"none of its {len(instants)} complete instant(s) is whole: {'; '.join(damaged[:3])}",
            remedy="'ckpt verify' tells what is wrong; 'ckpt rm' removes what is damaged, and without --resume all "
            "begin anew.",
        )
    return None


def refuse_parts(job: JobName, group: JobName, running: tuple[JobName, ...], store: Instants) -> None:
    """Return unless `job` has a place in the newest complete instant, and others of that run already.

    Raises:
        WrongState: they do: what they have done since then would not fit to it.
    """
    instants = [
        each for each in complete_instants(store.list(on_problem=lambda _problem: None)) if each.name == group
    ]
    if not instants:
        return
    members = [stored.checkpoint.job for stored in instants[-1].checkpoints]
    others = [name for name in running if name in members and name != job]
    if job in members and others:
        raise WrongState(
            subject=f"Job {job}",
            state=f"ended, while {', '.join(others)} of its group {group} run on",
            operation="a resume",
            needed="to go on together with them",
            remedy=f"End them ('ckpt stop {others[0]}'), and run this again: all go on from their newest instant.",
        )
