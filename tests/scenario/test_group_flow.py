"""A group is dumped and restored together or not at all, whichever member fails at whichever step."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
from fakes import world as fake
from fakes.calls import dump_ports, restore_call, restore_ports
from fakes.together import FakeTogether
from fakes.values import a_tree

from ckpt.errors import GroupFailed, ObjectCorrupt, WrongState
from ckpt.flow.dump import DumpCall, DumpPorts
from ckpt.flow.group_dump import GroupDumpCall, GroupDumpPorts, dump_group
from ckpt.flow.group_restore import GroupRestoreCall, GroupRestorePorts, restore_group
from ckpt.flow.group_resume import refuse_parts, resume_group
from ckpt.flow.restore import RestorePorts
from ckpt.model.checkpoint import DumpOptions, GroupInstant, StoredFile
from ckpt.model.clocks import Resumption
from ckpt.model.group import GroupDumpReport, StoredInstant, complete_instants
from ckpt.model.reports import StoredCheckpoint
from ckpt.model.target import TargetRef
from ckpt.model.workload import TargetKind
from ckpt.units import SECOND, ByteCount, CheckpointId, JobName, Nanoseconds

A, B = JobName("a"), JobName("b")
INSTANT = GroupInstant(name=JobName("shop"), instant="0123456789abcdef", members=(A, B))


@dataclass
class Worlds:
    """A world for each member, and the store that they share."""

    of: dict[JobName, fake.World] = field(default_factory=lambda: {name: a_world() for name in (A, B)})
    ended: list[JobName] = field(default_factory=list)

    def list(self) -> tuple[StoredCheckpoint, ...]:
        return tuple(
            StoredCheckpoint(
                id=CheckpointId(f"{name}{number}"), checkpoint=checkpoint, tags=(), stored_bytes=ByteCount(0)
            )
            for name, world in self.of.items()
            for number, checkpoint in world.manifests.items()
        )

    def take_back(self, checkpoints: tuple[CheckpointId, ...]) -> None:
        for checkpoint in checkpoints:
            del self.of[JobName(checkpoint[0])].manifests[CheckpointId(checkpoint[1:])]

    def dump(self, **how: bool) -> GroupDumpReport:
        calls = tuple(
            DumpCall(
                target=TargetRef(kind=TargetKind.JOB, name=name),
                job=name,
                tags=(),
                message="",
                stop=how.get("stop", False),
                options=DumpOptions(tcp_established=how.get("tcp", False)),
                freeze_timeout=Nanoseconds(10 * SECOND),
            )
            for name in self.of
        )
        ports = GroupDumpPorts(
            clock=fake.FakeClock(self.of[A]),
            together=FakeTogether(),
            instants=self,
            member=self._dump_ports,
            finish=self._finish,
        )
        return dump_group(GroupDumpCall(instant=INSTANT, calls=calls), ports)

    def restore(self, instant: StoredInstant) -> None:
        ports = GroupRestorePorts(
            clock=fake.FakeClock(self.of[A]),
            together=FakeTogether(),
            member=self._restore_ports,
            end=self.ended.append,
        )
        restore_group(GroupRestoreCall(instant=instant, how=restore_call()), ports)

    def _finish(self, job: JobName, checkpoint: CheckpointId) -> None:
        assert checkpoint in {stored.id for stored in self.list()}
        self.of[job].alive = False

    def _dump_ports(self, job: JobName) -> DumpPorts:
        return dump_ports(self.of[job])

    def _restore_ports(self, job: JobName) -> RestorePorts:
        return restore_ports(self.of[job])


class Stored(fake.FakeStore):
    """A store of these checkpoints."""

    def __init__(self, checkpoints: tuple[StoredCheckpoint, ...]) -> None:
        super().__init__(fake.World())
        self.checkpoints = checkpoints

    def list(self, on_problem: object = None) -> tuple[StoredCheckpoint, ...]:
        return self.checkpoints


def a_world() -> fake.World:
    return fake.World(trees=(a_tree(100),))


def dumped() -> tuple[Worlds, StoredInstant]:
    """Worlds whose store holds one instant, and that instant as a member's flow finds its part of it."""
    worlds = Worlds()
    worlds.dump(stop=True)
    [instant] = complete_instants(worlds.list())
    for world in worlds.of.values():
        world.journal.clear()
    parts = tuple(replace(each, id=CheckpointId(each.id[1:])) for each in instant.checkpoints)
    return worlds, replace(instant, checkpoints=parts)


HOWS = ({"stop": False}, {"stop": True}, {"stop": True, "tcp": True})


def dump_steps(how: dict[str, bool]) -> list[str]:
    worlds = Worlds()
    worlds.dump(**how)
    return list(dict.fromkeys(step for step in worlds.of[B].journal if step not in {"thaw", "CRIU kills"}))


def restore_steps() -> list[str]:
    worlds, instant = dumped()
    worlds.restore(instant)
    return [step for step in dict.fromkeys(worlds.of[B].journal) if step not in {"tidy", "settle"}]


@pytest.mark.parametrize("how", HOWS, ids=str)
def test_all_checkpoints_of_a_group_say_so_and_make_one_complete_instant(how: dict[str, bool]) -> None:
    worlds = Worlds()
    report = worlds.dump(**how)
    assert [each.checkpoint.job for each in report.members] == [A, B]
    assert {each.checkpoint.group for each in report.members} == {INSTANT}
    [instant] = complete_instants(worlds.list())
    assert instant.instant == INSTANT.instant
    assert all(world.alive is not how["stop"] for world in worlds.of.values())


@pytest.mark.parametrize(("how", "step"), [(how, step) for how in HOWS for step in dump_steps(how)], ids=str)
def test_whatever_step_of_one_member_fails_all_run_on_or_all_are_durable(
    how: dict[str, bool], step: str
) -> None:
    worlds = Worlds()
    worlds.of[B].fail_at = step
    with pytest.raises(GroupFailed, match="job b"):
        worlds.dump(**how)
    whole = bool(complete_instants(worlds.list()))
    assert whole or not worlds.list(), "half an instant is left"
    assert len({world.alive for world in worlds.of.values()}) == 1, "half a group runs"
    for world in worlds.of.values():
        assert world.alive or whole
        assert not world.frozen
        assert not world.gathered
        assert (world.operations, world.criu_running) == (0, 0)


@pytest.mark.parametrize("step", restore_steps())
def test_whatever_step_of_one_member_fails_none_is_restored(step: str) -> None:
    worlds, instant = dumped()
    worlds.of[B].fail_at = step
    with pytest.raises(GroupFailed, match="job b"):
        worlds.restore(instant)
    for world in worlds.of.values():
        assert (world.restored, world.half_restored) == (0, 0)
        assert not world.files_written
        assert not world.put_back
        assert world.operations == 0
    assert not worlds.ended


def test_nobody_is_let_go_by_criu_before_all_trees_are_there() -> None:
    worlds, instant = dumped()
    both = worlds.of[A].journal = worlds.of[B].journal
    worlds.restore(instant)
    restored = [index for index, step in enumerate(both) if step == "restore 100"]
    kept = [index for index, step in enumerate(both) if step == "keep the identities"]
    assert len(restored) == len(kept) == 2
    assert max(restored) < min(kept)


def test_a_member_that_is_lost_after_all_went_on_ends_the_others_again() -> None:
    worlds, instant = dumped()
    worlds.of[B].interrupted_late = True
    with pytest.raises(GroupFailed, match="a, b were ended again"):
        worlds.restore(instant)
    assert worlds.ended == [A, B]


def test_clocks_that_agreed_at_the_dump_agree_at_the_restore(monkeypatch: pytest.MonkeyPatch) -> None:
    worlds, instant = dumped()
    earlier = Nanoseconds(7_000_000)
    first, second = instant.checkpoints
    clocks = second.checkpoint.clocks.later(earlier)
    later = replace(second.checkpoint, clocks=clocks, created_ns=clocks.realtime_ns)
    worlds.of[B].manifests[second.id] = later
    resumed: list[Resumption] = []

    class Session(fake.FakeSession):
        def add(self, *, resumption: Resumption, **rest: object) -> object:  # type: ignore[override]
            resumed.append(resumption)
            return super().add(resumption=resumption, **rest)  # type: ignore[arg-type]

    monkeypatch.setattr(fake, "FakeSession", Session)
    worlds.restore(replace(instant, checkpoints=(first, replace(second, checkpoint=later))))
    at = {each.at_ns: each.clocks for each in resumed}
    (before, a), (after, b) = sorted(at.items())
    assert after - before == earlier
    assert a is not None
    assert b is not None
    assert b.monotonic_ns - a.monotonic_ns == earlier
    assert b.boottime_ns - a.boottime_ns == earlier


def test_a_resume_takes_an_older_instant_where_the_newest_is_damaged_and_begins_nothing_anew() -> None:
    worlds, newest = dumped()
    group = replace(INSTANT, instant="00" * 8)
    older = tuple(
        replace(each, checkpoint=replace(each.checkpoint, group=group, created_ns=Nanoseconds(1)))
        for each in newest.checkpoints
    )
    stored = Stored((*older, *newest.checkpoints))

    class Damaged(fake.FakeStore):
        def fetch(self, checkpoint: CheckpointId, file: StoredFile, path: str) -> None:
            if damaged > self.world.journal.count("damage"):
                self.world.step("damage")
                raise ObjectCorrupt(kind="pack", name="x", reason="it is")

    def member(job: JobName) -> RestorePorts:
        return replace(restore_ports(worlds.of[job]), store=Damaged(worlds.of[job]))

    ports = GroupRestorePorts(
        clock=fake.FakeClock(worlds.of[A]), together=FakeTogether(), member=member, end=worlds.ended.append
    )
    damaged = 1
    resumed = resume_group(A, INSTANT.name, restore_call(), ports, stored)
    assert resumed is not None
    assert resumed.report.instant == group.instant
    assert INSTANT.instant in resumed.damaged[0]
    damaged = 9
    with pytest.raises(ObjectCorrupt, match="none of its 2 complete"):
        resume_group(A, INSTANT.name, restore_call(), ports, stored)


def test_a_job_that_the_newest_instant_does_not_have_is_not_resumed_and_none_without_the_others() -> None:
    worlds, newest = dumped()
    stored = Stored(newest.checkpoints)
    ports = GroupRestorePorts(
        clock=fake.FakeClock(worlds.of[A]),
        together=FakeTogether(),
        member=lambda job: restore_ports(worlds.of[job]),
        end=worlds.ended.append,
    )
    assert resume_group(JobName("c"), INSTANT.name, restore_call(), ports, stored) is None
    refuse_parts(JobName("c"), INSTANT.name, (A, B), stored)
    with pytest.raises(WrongState, match="while b of its group"):
        refuse_parts(A, INSTANT.name, (B,), stored)


def test_an_instant_without_one_of_its_checkpoints_is_not_complete() -> None:
    worlds = Worlds()
    worlds.dump()
    del worlds.of[B].manifests[next(iter(worlds.of[B].manifests))]
    assert complete_instants(worlds.list()) == ()


def test_an_instant_that_nobody_can_have_taken_is_not_complete() -> None:
    worlds = Worlds()
    worlds.dump()
    first, second = worlds.list()
    twice = replace(first, id=CheckpointId("f" * 64))
    assert complete_instants((first, second, twice)) == ()
    alone = replace(first.checkpoint, group=replace(INSTANT, members=(A,)))
    for order in ((replace(first, checkpoint=alone), second), (second, replace(first, checkpoint=alone))):
        assert complete_instants(order) == ()
