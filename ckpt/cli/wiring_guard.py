"""Where the guard's adapters meet its ports; the rest of wiring.py, and its rules."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from ckpt.cli import wiring
from ckpt.cli.progress import Teller
from ckpt.errors import NoSuchTarget, ObjectCorrupt, OsRefused
from ckpt.flow.dump import DumpCall
from ckpt.flow.dump import dump as take_checkpoint
from ckpt.flow.guard_ports import GuardPorts
from ckpt.flow.restore import RestoreCall
from ckpt.flow.restore import restore as bring_back
from ckpt.host import supervision as supervisions
from ckpt.host.feeding import is_fed
from ckpt.host.guard.acting import HostActs
from ckpt.host.guard.room import Room, RoomyFreezer
from ckpt.host.inspection.inspector import HostInspector
from ckpt.host.jobs import JobState
from ckpt.host.locks import patiently
from ckpt.host.operations import JournaledOperation
from ckpt.model.checkpoint import DumpOptions
from ckpt.model.clocks import TimePolicy
from ckpt.model.guard_steps import (
    MigrateAway,
)
from ckpt.model.guarding import (
    Victim,
    Waiting,
)
from ckpt.model.inodes import InodePolicy
from ckpt.model.supervision import Reason
from ckpt.units import SECOND, CheckpointId, JobName, Nanoseconds

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from ckpt.flow.ports import Operation, Targets
    from ckpt.host.jobs import JobRecord, JobRegistry
    from ckpt.host.launch import Exit
    from ckpt.model.target import Target, TargetRef
    from ckpt.model.workload import Workload

FREEZE_TIMEOUT: Final = Nanoseconds(10 * SECOND)
LOCK_PATIENCE: Final = Nanoseconds(30 * SECOND)
"""A checkpoint that somebody else has under way is waited for: the next step may be worse for the victim."""

_BROUGHT_BACK_WITH_ROOM: Final = frozenset(("memory-limit",))
"""The preflight rule that wants room for a restore at once: a guard waits for it."""


def guard_ports(
    place: str,
    announce: Teller,
    *,
    options: DumpOptions | None = None,
    stopping: Callable[[], bool] = lambda: False,
) -> GuardPorts:
    """Everything that a guard needs.

    Args:
        place: Where the store is.
        announce: Told of the phases of dumps and restores.
        options: What CRIU is told; None takes a supervised job's own, and else the defaults.
        stopping: Whether somebody asked the guard to end.

    Raises:
        CriuMissing: there is no CRIU.
        StoreError: the store cannot be opened.
    """
    from ckpt.host.clock import HostClock  # noqa: PLC0415
    from ckpt.host.criu.locate import find_criu  # noqa: PLC0415
    from ckpt.host.guard.memory import HostMemory  # noqa: PLC0415
    from ckpt.host.guard.pressure import HostPressures  # noqa: PLC0415
    from ckpt.host.guard.victims import HostVictims  # noqa: PLC0415
    from ckpt.host.guard.waiting import HostWaitingRoom  # noqa: PLC0415

    # What a checkpoint needs is found, and loaded, before there is pressure.
    find_criu()
    wiring.open_store(place)
    wiring.load_dump_modules()
    registry = wiring.jobs()
    formers: dict[tuple[str, str], str] = {}
    return GuardPorts(
        clock=HostClock(),
        memory=HostMemory(),
        pressures=HostPressures(wiring.state(), formers, stopping),
        victims=HostVictims(registry),
        acts=_Acts(registry, place),
        checkpoints=_Checkpoints(
            registry=registry, place=place, announce=announce, formers=formers, options=options
        ),
        waiting=HostWaitingRoom(wiring.state()),
    )


@dataclass(slots=True, kw_only=True)
class _Checkpoints:
    """Checkpoints of victims that are short of memory. Fits the port `Checkpoints`."""

    registry: JobRegistry
    place: str
    announce: Teller
    formers: Mapping[tuple[str, str], str] = field(default_factory=dict)
    options: DumpOptions | None = None

    def take(self, victim: Victim) -> CheckpointId:
        """Checkpoint the victim and end it, once that is durable.

        Raises:
            CkptError: it runs on.
        """
        return patiently(lambda: self._take(victim), LOCK_PATIENCE / SECOND)

    def has_caller(self, victim: Victim) -> bool:
        """Whether only who started the victim can bring it back, as its input comes from there."""
        record = None if victim.job is None else self.registry.find(victim.job)
        return record is not None and is_fed(self.registry, record)

    def bring_back(self, waiting: Waiting) -> None:
        """Restore a victim, with a supervisor if it had one.

        Raises:
            CkptError: it is where it was.
        """
        assert waiting.checkpoint is not None  # found() has said so
        job = waiting.job
        bring_back(
            RestoreCall(
                ref=waiting.checkpoint,
                job=job,
                time=TimePolicy.SUSPEND,
                inodes=InodePolicy.KEEP,
                new_pids=False,
                cgroup="" if job is not None else _restorable(waiting.ref.name),
            ),
            wiring.restore_ports(waiting.store, self.announce),
        )
        if job is not None and supervisions.is_supervised(self.registry, job):
            self._supervise(job)

    def found(self, waiting: Waiting) -> CheckpointId | None:
        """What this one can be brought back from; None if it runs, was brought back, or never was ended."""
        if waiting.job is None:
            return waiting.checkpoint
        try:
            view = self.registry.look(waiting.job)
        except (NoSuchTarget, ObjectCorrupt):
            return None
        if view.is_alive:
            self._oversee(waiting, view.record)
            return None
        if view.state is JobState.MIGRATED:
            return None
        stopped_by = view.record.stopped_by
        if waiting.checkpoint is not None:
            return waiting.checkpoint if waiting.checkpoint == stopped_by else None
        if stopped_by is None and _ended_by_itself(view.exit):
            return None
        newest = self._newest(waiting, view.record)
        # Ended by another checkpoint than a guard's it was ended on purpose.
        return newest if stopped_by in (None, newest) else None

    def _take(self, victim: Victim) -> CheckpointId:
        supervision = None
        appended: tuple[str, ...] = ()
        if victim.job is not None:
            with contextlib.suppress(ObjectCorrupt):
                supervision = supervisions.load(self.registry, victim.job)
            log = supervision.log if supervision is not None else ""
            appended = supervisions.appended_files(self.registry, victim.job, log)
        call = DumpCall(
            target=victim.ref,
            job=None,
            tags=(),
            message=Reason.PRESSURE,
            stop=True,
            options=self.options or (supervision.options if supervision is not None else DumpOptions()),
            freeze_timeout=FREEZE_TIMEOUT,
            with_files=() if supervision is None else supervision.with_files,
            appended=appended if supervision is not None else (),
        )
        room = Room(victim.cgroup, self.formers)
        ports = wiring.dump_ports(self.place, self.announce)
        return take_checkpoint(
            call,
            replace(
                ports,
                targets=_RoomyTargets(ports.targets, room),
                inspector=_InspectorOfNeedy(room, self.announce),
            ),
        ).id

    def _newest(self, waiting: Waiting, record: JobRecord) -> CheckpointId | None:
        """A checkpoint of a guard that died before it could say that it had ended the job."""
        store = wiring.open_store(waiting.store, create=False)
        for kept in reversed(store.list()):
            if kept.checkpoint.job == record.name and kept.checkpoint.created_ns >= waiting.since_ns:
                return kept.id if kept.checkpoint.message == Reason.PRESSURE else None
        return None

    def _oversee(self, waiting: Waiting, record: JobRecord) -> None:
        """Give it its supervisor, where a guard brought it back and died before it could."""
        if record.restored_from == waiting.checkpoint is not None and supervisions.is_supervised(
            self.registry, record.name
        ):
            self._supervise(record.name)

    def _supervise(self, job: JobName) -> None:
        from ckpt.cli.supervise import start_supervisor  # noqa: PLC0415

        if supervisions.supervisor_of(self.registry, job) is None:
            start_supervisor(job)


class _Acts(HostActs):
    """What can be done to a victim, but for a checkpoint. Fits the port `Acts`."""

    def __init__(self, registry: JobRegistry, place: str) -> None:
        super().__init__(registry)
        self._place = place

    def migrate(self, victim: Victim, step: MigrateAway) -> None:
        """Move the victim to the host, as `ckpt migrate` does; what that prints goes to standard error.

        Raises:
            CkptError: it runs on here.
        """
        import click  # noqa: PLC0415

        from ckpt.cli.call import Call  # noqa: PLC0415
        from ckpt.cli.group import ckpt  # noqa: PLC0415

        target = [victim.ref.name] if victim.job is not None else ["--cgroup", victim.ref.name]
        words = ["--store", self._place, "migrate", *step.options, *target, step.host]
        try:
            with contextlib.redirect_stdout(sys.stderr):
                ckpt.main(args=words, prog_name="ckpt", standalone_mode=False, obj=Call())
        except click.ClickException as error:
            raise OsRefused(
                operation="migrate", subject=victim.label, reason=error.format_message()
            ) from error


class _RoomyTargets:
    """Targets that may wait for memory. Fits the port `Targets`."""

    def __init__(self, targets: Targets, room: Room) -> None:
        self._targets = targets
        self._room = room

    def resolve(self, ref: TargetRef) -> Target:
        return self._targets.resolve(ref)

    def lock(self, target: Target) -> AbstractContextManager[None]:
        return self._targets.lock(target)

    def freezer(self, target: Target, operation: Operation) -> RoomyFreezer:
        assert isinstance(operation, JournaledOperation)
        self._room.begin(operation)
        return RoomyFreezer(self._targets.freezer(target, operation), self._room)


class _InspectorOfNeedy(HostInspector):
    """Describes a workload with the limits that it had before, and takes one that is at its limit of memory."""

    def __init__(self, room: Room, announce: Teller) -> None:
        super().__init__(wiring.state(), progress=announce, allow=_BROUGHT_BACK_WITH_ROOM)
        self._room = room

    def describe(self, view: object, target: Target) -> Workload:
        return self._room.as_before(super().describe(view, target))


def _ended_by_itself(ended: Exit | None) -> bool:
    """Whether nobody killed it: it went on after its checkpoint, and is done."""
    return ended is not None and ended.shell_code != 128 + signal.SIGKILL


def _restorable(cgroup: str) -> str:
    """The cgroup as one to restore into; "" where it can only account memory."""
    from ckpt.host.freezer_control import control_of  # noqa: PLC0415

    return cgroup if control_of(cgroup) is not None else ""
