"""What is done after a crash, by what both sides say: nobody's only copy is dropped, and nothing is done on a guess."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from ckpt.codec.migration_messages import State
from ckpt.errors import CannotCheckpoint, CkptError, Interrupted, NoSuchTarget, OsRefused, WrongState
from ckpt.flow.settle_migration import Known, SettlePorts, settle
from ckpt.model.migration import Resolution, SourceState
from ckpt.model.target import TargetRef
from ckpt.model.workload import TargetKind
from ckpt.units import Pid

ID = "0123456789abcdef"
JOB = TargetRef(kind=TargetKind.JOB, name="web")
PROCESS = TargetRef(kind=TargetKind.PID, name="4711")
GONE = NoSuchTarget(kind="running job", name="web", remedy="")


@dataclass
class Both:
    """Both sides: what they say, and what they were told. Fits the ports of settle()."""

    state: SourceState
    there: str
    found: CkptError | None = None
    id: str = ID
    told: list[str] = field(default_factory=list)

    def resolve(self, _ref: TargetRef) -> None:
        if self.found is not None:
            raise self.found

    def note(self, state: SourceState) -> None:
        self.state = state
        self.told.append(state)

    def remove(self, *_of: object) -> None:
        self.told.append("remove")

    def mark_migrated(self, job: str, host: str) -> None:
        self.told.append(f"{job} is on {host}")

    def settle(self, ref: TargetRef, *, rebooted: bool = False) -> Resolution:
        here: Any = self
        far: Any = Far(self)
        ports = SettlePorts(targets=here, jobs=here, networks=here, records=here, kill=self.told.append)
        known = Known(host="there", job="web", cgroup="/cg", ref=ref, rebooted=rebooted)
        return settle(known, ports, far, resuming=False)


@dataclass
class Far:
    both: Both

    def state(self) -> State:
        return State(migration=ID, state=self.both.there, job="web", pid=Pid(0))

    def abort(self) -> None:
        self.both.told.append("abort")

    def commit(self) -> None:
        self.both.told.append("commit")

    def forget(self) -> None:
        self.both.told.append("forget")


@pytest.mark.parametrize(
    ("ref", "found"), [(JOB, GONE), (PROCESS, GONE), (PROCESS, None)], ids=["job", "pid", "a pid of another"]
)
def test_a_copy_that_a_power_cut_left_to_the_target_alone_is_kept(
    ref: TargetRef, found: CkptError | None
) -> None:
    both = Both(SourceState.FROZEN, "held", found)
    with pytest.raises(WrongState, match="frozen here and held there") as caught:
        both.settle(ref, rebooted=True)
    assert "the last copy" in caught.value.advice
    assert both.told == []


def test_a_job_that_its_user_has_brought_back_since_stays_here() -> None:
    both = Both(SourceState.FROZEN, "held")
    assert both.settle(JOB, rebooted=True) is Resolution.ABORT
    assert both.told == ["aborted", "abort", "remove"]


def test_a_workload_that_ended_by_itself_is_no_lost_one() -> None:
    assert Both(SourceState.TRANSFERRING, "held", GONE).settle(JOB) is Resolution.ABORT


def test_a_target_that_runs_what_was_never_committed_gets_nothing() -> None:
    busy = CannotCheckpoint(target="web", reasons=("it is this very process",))
    for found in (None, busy):
        both = Both(SourceState.FROZEN, "running", found)
        with pytest.raises(WrongState, match="frozen here and running there"):
            both.settle(JOB)
        assert both.told == []


@pytest.mark.parametrize(
    "error",
    [Interrupted(operation="ckpt recover"), OsRefused(operation="read", subject="/cg", reason="I/O error")],
    ids=["interrupted", "unreadable"],
)
@pytest.mark.parametrize("state", [SourceState.FROZEN, SourceState.COMMITTED])
def test_where_nobody_can_tell_whether_it_lives_nothing_is_removed(
    error: CkptError, state: SourceState
) -> None:
    both = Both(state, "running", error)
    with pytest.raises(type(error)):
        both.settle(JOB)
    assert both.told == []
