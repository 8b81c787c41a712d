"""Where adapters meet the ports of groups; mypy proves here that they fit.

Rule: adapters are imported when a command needs them, so that the others stay quick; and before processes are forked,
so that each of these finds them loaded.
"""

from __future__ import annotations

import secrets
from contextlib import AbstractContextManager, suppress
from typing import TYPE_CHECKING, Final

from ckpt.cli import wiring
from ckpt.errors import NoSuchTarget, WrongState
from ckpt.flow.group_dump import GroupDumpPorts
from ckpt.flow.group_restore import GroupRestorePorts
from ckpt.host.locks import patiently
from ckpt.model.checkpoint import GroupInstant
from ckpt.model.progress import Unwatched
from ckpt.units import CheckpointId, JobName

if TYPE_CHECKING:
    from ckpt.flow.dump import DumpPorts
    from ckpt.flow.restore import RestorePorts
    from ckpt.host.jobs import JobView
    from ckpt.host.outside import Joined
    from ckpt.model.reports import StoredCheckpoint


_PATIENCE_S: Final = 10.0
"""How long the guardian of a killed process is waited for, which holds the locks of its job."""


def lock(group: JobName) -> AbstractContextManager[None]:
    """Keep other ckpt processes from dumping or restoring this group.

    Raises:
        Locked: one of them is at it.
    """
    return _lock(f"group-{group}", group)


def precedence(group: JobName) -> AbstractContextManager[None]:
    """Have others leave the lock of this group to us, who end it.

    Raises:
        Locked: another process has that.
    """
    return _lock(f"ending-group-{group}", group)


def _lock(name: str, group: JobName) -> AbstractContextManager[None]:
    from ckpt.host.locks import exclusive  # noqa: PLC0415

    return exclusive(f"{wiring.state()}/locks", [name], subject=f"Group {group}")


def running_members(group: JobName) -> tuple[tuple[JobView, ...], tuple[str, ...]]:
    """The jobs of the group that run, and a sentence for each that does not.

    Raises:
        NoSuchTarget: no job belongs to it.
        WrongState: none of them runs.
    """
    views = wiring.jobs().in_group(group)
    if not views:
        raise NoSuchTarget(
            kind="group", name=group, remedy="'ckpt run --group G' puts a job into one, 'ckpt ps' shows them."
        )
    running = tuple(view for view in views if view.is_alive)
    if not running:
        raise WrongState(
            subject=f"Group {group}",
            state=", ".join(f"{view.name} {view.state}" for view in views),
            operation="a dump",
            needed="with a job that runs",
            remedy=f"'ckpt restore --group {group}' brings the newest of its checkpoints back.",
        )
    absent = tuple(
        f"job {view.name} of the group is {view.state}, and has no part in this checkpoint"
        for view in views
        if not view.is_alive
    )
    return running, absent


def new_instant(group: JobName, members: tuple[JobName, ...]) -> GroupInstant:
    """A name for an instant that there never was."""
    return GroupInstant(name=group, instant=secrets.token_hex(8), members=members)


def group_dump_ports(place: str) -> GroupDumpPorts:
    """Everything that a dump of a group needs.

    Raises:
        CriuMissing: there is no CRIU.
        StoreError: the store cannot be opened.
    """
    from ckpt.host.clock import HostClock  # noqa: PLC0415
    from ckpt.host.together import ForkedTogether  # noqa: PLC0415

    _dump_ports(place)
    return GroupDumpPorts(
        clock=HostClock(),
        together=ForkedTogether(),
        instants=_StoredInstants(place),
        member=lambda _job: _dump_ports(place),
        finish=_finish,
    )


def group_restore_ports(
    place: str, *, joining: JobName | None = None, joined: Joined | None = None
) -> GroupRestorePorts:
    """Everything that a restore of a group needs.

    Args:
        place: Where the store is.
        joining: A job of it that something is joined to.
        joined: What takes the place of what that job had from outside.

    Raises:
        CriuMissing: there is no CRIU.
        StoreError: the store cannot be opened.
    """
    from ckpt.host.clock import HostClock  # noqa: PLC0415
    from ckpt.host.together import ForkedTogether  # noqa: PLC0415

    _restore_ports(place, None)
    return GroupRestorePorts(
        clock=HostClock(),
        together=ForkedTogether(),
        member=lambda job: _restore_ports(place, joined if job == joining else None),
        end=_end,
    )


class _StoredInstants:
    """The store, opened when something is to be taken back. Fits the port `Instants`."""

    def __init__(self, place: str) -> None:
        self._place = place

    def list(self) -> tuple[StoredCheckpoint, ...]:
        """All checkpoints that can be read, oldest first."""
        return wiring.open_store(self._place).list(on_problem=lambda _problem: None)

    def take_back(self, checkpoints: tuple[CheckpointId, ...]) -> None:
        """Remove them, and let go of the inodes that were kept for them."""
        from ckpt.host.inodes.pinbook import Pins  # noqa: PLC0415

        wiring.open_store(self._place).remove(checkpoints)
        Pins(wiring.state()).release(checkpoints)


class _Silent(Unwatched):
    """Tells nobody: several processes would talk at once. Fits Teller."""

    def __call__(self, phase: str) -> None:
        """Nothing."""


def _dump_ports(place: str) -> DumpPorts:
    return wiring.dump_ports(place, _Silent())


def _restore_ports(place: str, joined: Joined | None) -> RestorePorts:
    return wiring.restore_ports(place, _Silent(), joined=joined)


def _end(job: JobName) -> None:
    if wiring.runs(job):
        wiring.stop_job(job, grace_s=0)


def _finish(job: JobName, checkpoint: CheckpointId) -> None:
    registry = wiring.jobs()
    while wiring.runs(job):
        with suppress(NoSuchTarget, WrongState):  # it has just ended
            patiently(lambda: wiring.stop_job(job, grace_s=0), _PATIENCE_S)
    if registry.load(job).stopped_by != checkpoint:
        registry.mark_stopped(job, checkpoint)
