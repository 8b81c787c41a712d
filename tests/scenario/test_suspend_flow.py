"""Suspending a job and bringing it back: whatever fails or crashes in between, it is neither lost nor there twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace

import pytest
from fakes import world as fake
from fakes.calls import dump_ports, restore_ports
from fakes.values import CLOCKS

from ckpt.errors import NoSuchTarget, ObjectCorrupt, ObjectMissing, WrongState
from ckpt.flow.dump import DumpCall
from ckpt.flow.suspend import ResumePorts, SuspendCall, SuspendPorts, bring_back, suspend
from ckpt.model.checkpoint import DumpOptions
from ckpt.model.reports import Problem, StoredCheckpoint
from ckpt.model.supervision import Reason
from ckpt.model.suspended import Life, Suspended
from ckpt.model.target import TargetRef
from ckpt.model.workload import TargetKind
from ckpt.units import SECOND, CheckpointId, JobName, Nanoseconds

WEB = JobName("web")
BEGAN = Nanoseconds(CLOCKS.realtime_ns - 1)

CALL = SuspendCall(
    job=WEB,
    store="/store",
    dump=DumpCall(
        target=TargetRef(kind=TargetKind.JOB, name=WEB),
        job=None,
        tags=(),
        message=Reason.SUSPEND,
        stop=True,
        options=DumpOptions(),
        freeze_timeout=Nanoseconds(10 * SECOND),
    ),
)


class Clock(fake.FakeClock):
    def realtime(self) -> Nanoseconds:
        return CLOCKS.realtime_ns


class Store(fake.FakeStore):
    """One that has a list, and a damaged checkpoint if it is told of one."""

    damaged = ""

    def resolve(self, ref: str) -> CheckpointId:
        job, tilde, back = ref.partition("~")
        known = [number for number, one in self.world.manifests.items() if one.job == job]
        if not tilde:
            return super().resolve(ref)
        if int(back) >= len(known):
            raise ObjectMissing(place=self.place, kind="checkpoint", name=ref)
        return known[-1 - int(back)]

    def list(self, on_problem: Callable[[Problem], None] | None = None) -> tuple[StoredCheckpoint, ...]:
        return tuple(map(self.load, self.world.manifests))

    def check_trust(self, checkpoint: CheckpointId) -> None:
        super().check_trust(checkpoint)
        if checkpoint == self.damaged:
            raise ObjectCorrupt(kind="pack", name="1", reason="a bit is flipped")


@dataclass
class FakeSuspended:
    """Fits the port `SuspendedJobs`; a job runs while its world's workload is alive, or restored."""

    world: fake.World
    records: dict[JobName, Suspended] = field(default_factory=dict)
    life_since: Life | None = None

    @contextmanager
    def lock(self, job: JobName) -> Iterator[None]:
        yield

    def find(self, job: JobName) -> Suspended | None:
        return self.records.get(job)

    def save(self, record: Suspended) -> None:
        self.world.step("remember" if record.checkpoint else "intend")
        self.records[record.job] = record

    def remove(self, job: JobName) -> None:
        self.world.step("forget")
        self.records.pop(job, None)

    def life(self, job: JobName) -> Life | None:
        runs = self.world.alive or self.world.restored > 0
        return self.life_since or Life(began_ns=BEGAN, runs=runs)


def suspend_ports(world: fake.World, suspended: FakeSuspended) -> SuspendPorts:
    dump = replace(dump_ports(world), store=Store(world))
    return SuspendPorts(clock=Clock(world), suspended=suspended, dump=dump)


def resume_ports(world: fake.World, suspended: FakeSuspended) -> ResumePorts:
    return ResumePorts(
        suspended=suspended,
        restore=restore_ports(world),
        store=Store(world),
        jobs=fake.FakeJobs(world),
    )


def suspended_world() -> tuple[fake.World, FakeSuspended]:
    world = fake.World()
    suspended = FakeSuspended(world)
    suspend(CALL, suspend_ports(world, suspended))
    world.journal.clear()
    return world, suspended


def steps_of_a_suspension() -> list[str]:
    world = fake.World()
    suspend(CALL, suspend_ports(world, FakeSuspended(world)))
    return [step for step in dict.fromkeys(world.journal) if step != "thaw"]


def test_what_is_to_come_back_is_written_down_before_the_job_can_end() -> None:
    world = fake.World()
    suspended = FakeSuspended(world)
    record = suspend(CALL, suspend_ports(world, suspended))
    assert world.journal.index("intend") < world.journal.index("commit") < world.journal.index("kill")
    assert world.journal[-1] == "remember"
    assert suspended.records == {WEB: record}
    assert record.checkpoint in world.manifests


@pytest.mark.parametrize("step", steps_of_a_suspension())
def test_whatever_step_fails_the_job_runs_or_is_remembered(step: str) -> None:
    world = fake.World(fail_at=step)
    suspended = FakeSuspended(world)
    with suppress(fake.InjectedError):
        suspend(CALL, suspend_ports(world, suspended))
    world.fail_at = None
    if world.alive:
        assert not suspended.records
        return
    found = bring_back(WEB, resume_ports(world, suspended), older=False)
    assert found is not None
    assert (world.restored, suspended.records) == (len(world.trees), {})


def test_a_job_that_ended_when_the_host_went_down_is_found_by_its_checkpoint() -> None:
    world, suspended = suspended_world()
    suspended.records[WEB] = replace(suspended.records[WEB], checkpoint=None)
    assert bring_back(WEB, resume_ports(world, suspended), older=False) is not None
    assert world.restored == len(world.trees)


def test_one_whose_checkpoint_was_not_durable_is_told_and_forgotten() -> None:
    world, suspended = suspended_world()
    suspended.records[WEB] = replace(suspended.records[WEB], checkpoint=None)
    world.manifests.clear()
    with pytest.raises(WrongState, match="before the host went down"):
        bring_back(WEB, resume_ports(world, suspended), older=False)
    assert not suspended.records


def test_a_job_that_another_checkpoint_has_ended_meanwhile_is_remembered_with_that() -> None:
    world = fake.World(alive=False)
    other = CheckpointId("1" * 64)
    suspended = FakeSuspended(world, life_since=Life(began_ns=BEGAN, runs=False, stopped_by=other))
    assert suspend(CALL, suspend_ports(world, suspended)).checkpoint == other
    assert "freeze" not in world.journal


def test_a_job_that_has_ended_by_itself_is_not_remembered() -> None:
    world = fake.World(alive=False)
    suspended = FakeSuspended(world)
    with pytest.raises(NoSuchTarget):
        suspend(CALL, suspend_ports(world, suspended))
    assert not suspended.records


@pytest.mark.parametrize(
    "life",
    [
        Life(began_ns=BEGAN, runs=True),
        Life(began_ns=Nanoseconds(CLOCKS.realtime_ns + 1), runs=False),
        Life(began_ns=BEGAN, runs=False, restored_from=CheckpointId(f"{0:064x}")),
    ],
    ids=["it runs", "it has lived since", "it has lived since, by a clock that was wrong"],
)
def test_a_crash_after_the_restore_brings_nothing_back_twice(life: Life) -> None:
    world, suspended = suspended_world()
    suspended.life_since = life
    assert bring_back(WEB, resume_ports(world, suspended), older=False) is None
    assert (world.restored, suspended.records) == (0, {})


def test_a_restore_that_fails_leaves_the_job_suspended() -> None:
    world, suspended = suspended_world()
    world.fail_at = "restore 200"
    with pytest.raises(fake.InjectedError):
        bring_back(WEB, resume_ports(world, suspended), older=False)
    assert (world.restored, world.half_restored) == (0, 0)
    assert WEB in suspended.records


@pytest.mark.parametrize("older", [False, True])
def test_only_where_older_ones_may_do_a_damaged_checkpoint_is_passed_over(*, older: bool) -> None:
    world = fake.World()
    suspended = FakeSuspended(world)
    ports = suspend_ports(world, suspended)
    suspend(CALL, ports)
    world.alive = True
    record = suspend(CALL, ports)
    store = Store(world)
    store.damaged = str(record.checkpoint)
    resuming = replace(
        resume_ports(world, suspended), store=store, restore=replace(restore_ports(world), store=store)
    )
    if not older:
        with pytest.raises(ObjectCorrupt):
            bring_back(WEB, resuming, older=False)
        assert WEB in suspended.records
        return
    found = bring_back(WEB, resuming, older=True)
    assert found is not None
    assert (found.report.id, len(found.damaged)) == (f"{0:064x}", 1)
    assert not suspended.records
