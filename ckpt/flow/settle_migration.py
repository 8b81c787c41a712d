"""Finish or undo a migration whose controller or connection died: by the states of both sides.

Rule: what is done is what model/migration.py says of the two states; who cannot ask the other side does only what
that lets him do alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ckpt.errors import CannotCheckpoint, NoSuchTarget, WrongState
from ckpt.flow.migration_ports import FarSide, SourceRecords
from ckpt.flow.ports import Jobs, Networks, Targets
from ckpt.model.migration import Resolution, SourceCopy, SourceState, TargetState, resolve
from ckpt.model.target import Target, TargetRef
from ckpt.model.workload import TargetKind
from ckpt.units import JobName


@dataclass(frozen=True, slots=True, kw_only=True)
class SettlePorts:
    """The outside things that settling needs, on the source; `kill` ends what is left of a workload in a cgroup."""

    targets: Targets
    jobs: Jobs
    networks: Networks
    records: SourceRecords
    kill: Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What the record says of the workload: "" for no job. `rebooted`: this host was, since the migration began."""

    host: str
    job: str
    cgroup: str
    ref: TargetRef | None
    rebooted: bool = False


def settle(known: Known, ports: SettlePorts, far: FarSide, *, resuming: bool) -> Resolution:
    """Ask the target, and do what the two states call for; CONTINUE does nothing yet.

    Raises:
        WrongState: the two contradict each other, or the last copy is on the target: an operator must look.
        PeerFailed: the target cannot be asked, or did not do it.
    """
    records = ports.records
    said = far.state()
    state = TargetState(said.state) if said.state else None
    resolution = resolve(records.state, state, copy=_copy_of(known, ports), resuming=resuming)
    match resolution:
        case Resolution.ABORT:
            if records.state is not SourceState.ABORTED:
                records.note(SourceState.ABORTED)
            far.abort()
            records.remove()
        case Resolution.CONTINUE:
            pass
        case Resolution.DELIVER_COMMIT:
            if known.cgroup and records.state.has_committed:
                ports.kill(known.cgroup)
            far.commit()
            _finish(known, ports, far)
        case Resolution.FINISH:
            _finish(known, ports, far)
        case Resolution.LAST_COPY | Resolution.CONFLICT:
            raise WrongState(
                subject=f"Migration {records.id} to {known.host}",
                state=f"{records.state} here and {state or 'unknown'} there",
                operation="finishing it",
                needed="in states that fit",
                remedy=resolution.sentence,
            )
    return resolution


def _finish(known: Known, ports: SettlePorts, far: FarSide) -> None:
    records = ports.records
    if records.state.has_committed:
        # What was committed is dead by now: what lives here by its name has come back.
        has_come_back = _is_there(known, ports)
        if known.ref is not None and not has_come_back:
            ports.networks.remove(Target(ref=known.ref, job=_job(known), cgroup=known.cgroup, roots=()))
        if known.job and not has_come_back:
            _mark(known, ports)
        if records.state is not SourceState.FINISHED:
            records.note(SourceState.FINISHED)
    far.forget()
    records.remove()


def _mark(known: Known, ports: SettlePorts) -> None:
    try:
        ports.jobs.mark_migrated(JobName(known.job), known.host)
    except NoSuchTarget:  # it was forgotten meanwhile
        return


def _job(known: Known) -> JobName | None:
    return JobName(known.job) if known.job else None


def _copy_of(known: Known, ports: SettlePorts) -> SourceCopy:
    """What has become of the workload here."""
    is_there = _is_there(known, ports)
    # No process outlives a reboot: only a job has come back by its user's will.
    if known.rebooted and not (is_there and known.ref is not None and known.ref.kind is TargetKind.JOB):
        return SourceCopy.LOST
    return SourceCopy.RUNS if is_there else SourceCopy.ENDED


def _is_there(known: Known, ports: SettlePorts) -> bool:
    """Whether something lives here by the workload's name; raises where that cannot be told."""
    if known.ref is None:
        return False
    try:
        ports.targets.resolve(known.ref)
    except NoSuchTarget:
        return False
    except CannotCheckpoint:
        return True
    return True
