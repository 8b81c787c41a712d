"""Every step of a dump fails once: afterwards the workload runs, and nothing is left behind."""

from __future__ import annotations

from dataclasses import replace

import pytest
from fakes import world as fake
from fakes.calls import dump_ports as ports
from fakes.values import a_tree

from ckpt.errors import DumpFailed, NoSuchTarget, NotNow, UndoError, WrongState
from ckpt.flow.dump import DumpCall, DumpPorts, dump
from ckpt.flow.snapshot import ATTEMPTS_MAX
from ckpt.model.checkpoint import DumpOptions
from ckpt.model.target import TargetRef
from ckpt.model.workload import TargetKind
from ckpt.units import SECOND, JobName, Nanoseconds, Tag


def call(*, stop: bool = False, tcp: bool = False) -> DumpCall:
    return DumpCall(
        target=TargetRef(kind=TargetKind.JOB, name="web"),
        job=None,
        tags=(Tag("release"),),
        message="before the upgrade",
        stop=stop,
        options=DumpOptions(tcp_established=tcp),
        freeze_timeout=Nanoseconds(10 * SECOND),
        with_files=("/srv/state.db", "/srv/log"),
        appended=("/srv/job.log",),
    )


def steps_of(**how: bool) -> list[str]:
    world = fake.World() if not how.get("tcp") else fake.World(trees=(a_tree(100),))
    dump(call(**how), ports(world))
    return list(dict.fromkeys(step for step in world.journal if step not in {"thaw", "CRIU kills"}))


def test_a_dump_freezes_once_thaws_before_it_stores_and_leaves_the_workload_running() -> None:
    world = fake.World()
    report = dump(call(), ports(world))
    journal = world.journal
    assert journal.count("freeze") == 1
    assert journal.count("take files") == 1
    assert journal.index("freeze") < journal.index("take files") < journal.index("thaw")
    assert [saved.path for saved in report.checkpoint.saved_files] == [
        "/srv/state.db",
        "/srv/log",
        "/srv/job.log",
    ]
    (read,) = (index for index, step in enumerate(journal) if step.startswith("read "))
    assert read > journal.index("thaw")
    assert journal.index("start CRIU") < journal.index("freeze") < journal.index("dump 100")
    assert journal.index("dump 100") < journal.index("dump 200") < journal.index("thaw")
    stored = [index for index, step in enumerate(journal) if step.startswith(("store", "inodes", "describe"))]
    assert min(stored) > journal.index("thaw")
    assert "kill" not in journal
    assert world.alive
    assert not world.frozen
    assert not world.gathered
    assert (world.operations, world.criu_running) == (0, 0)
    assert report.checkpoint.frozen_ns > 0
    assert world.tags == {Tag("release"): report.id}
    assert report.checkpoint.job == JobName("web")


@pytest.mark.parametrize(("stop", "tcp"), [(False, False), (True, True)])
def test_who_wants_to_know_is_told_when_all_stand_still_and_no_file_is_taken_yet(
    *, stop: bool, tcp: bool
) -> None:
    world = fake.World(trees=(a_tree(100),))
    dump(replace(call(stop=stop, tcp=tcp), froze=lambda: world.step("told")), ports(world))
    journal = world.journal
    assert journal.index("confirm") < journal.index("told") < journal.index("dump 100")
    assert journal.index("told") < journal.index("take files")


def test_the_next_checkpoint_of_a_job_names_its_parent() -> None:
    world = fake.World()
    first = dump(call(), ports(world))
    second = dump(call(), ports(world))
    assert first.checkpoint.parent is None
    assert second.checkpoint.parent == first.id


def test_where_the_clock_was_set_back_the_newest_checkpoint_is_still_the_last_one_taken() -> None:
    world = fake.World()
    first = dump(call(), ports(world))
    late = Nanoseconds(first.checkpoint.created_ns + 3600 * SECOND)
    world.manifests[first.id] = replace(first.checkpoint, created_ns=late)
    second = dump(call(), ports(world))
    assert second.checkpoint.created_ns == late + 1
    assert second.checkpoint.clocks.realtime_ns < late


def test_stop_kills_only_after_the_checkpoint_is_durable_and_never_thaws_before() -> None:
    world = fake.World()
    dump(call(stop=True), ports(world))
    assert world.journal.index("phase durable") < world.journal.index("kill")
    assert "thaw" not in world.journal[: world.journal.index("kill")]
    assert not world.alive


def test_stop_with_connections_lets_criu_kill_after_the_checkpoint_is_durable() -> None:
    world = fake.World(trees=(a_tree(100),))
    report = dump(call(stop=True, tcp=True), ports(world))
    order = ["phase durable", "detach the network", "CRIU kills", "remove the network"]
    assert [step for step in world.journal if step in order] == order
    assert report.checkpoint.image_sets[0].statistics is None


def test_stop_with_connections_of_several_trees_is_refused_and_all_go_on() -> None:
    world = fake.World()
    with pytest.raises(DumpFailed, match="2 trees"):
        dump(call(stop=True, tcp=True), ports(world))
    assert world.alive
    assert not world.frozen


@pytest.mark.parametrize(
    ("how", "step"),
    [
        (how, step)
        for how in ({"stop": False}, {"stop": True}, {"stop": True, "tcp": True})
        for step in steps_of(**how)
    ],
    ids=str,
)
def test_whatever_step_fails_the_workload_is_neither_lost_nor_frozen(how: dict[str, bool], step: str) -> None:
    world = fake.World(fail_at=step)
    if how.get("tcp"):
        world.trees = (a_tree(100),)
    with pytest.raises(fake.InjectedError):
        dump(call(**how), ports(world))
    durable = bool(world.manifests)
    assert world.alive or durable
    assert not world.frozen
    assert not world.gathered
    assert not world.copies_of_files
    assert not (world.alive and world.network_detached)
    assert (world.operations, world.criu_running) == (0, 0)


def test_a_root_that_ended_before_the_freeze_makes_the_dump_begin_anew() -> None:
    world = fake.World(roots_replaced=1)
    report = dump(call(), ports(world))
    assert [images.root for images in report.checkpoint.image_sets] == [100, 200]
    assert world.journal.count("freeze") == 2


def test_a_target_that_replaces_its_root_all_the_time_is_given_up_and_runs_on() -> None:
    world = fake.World(roots_replaced=9)
    with pytest.raises(WrongState, match="root process"):
        dump(call(), ports(world))
    assert not world.frozen


@pytest.mark.parametrize(("moments", "dumped"), [(2, True), (99, False)])
def test_a_moment_that_cannot_be_dumped_is_waited_out_with_the_workload_running(
    moments: int, *, dumped: bool
) -> None:
    world = fake.World()

    class Busy(fake.FakeInspector):
        left = moments

        def confirm(self, survey: fake.FakeView, cgroup: str, *, patient: bool) -> fake.FakeView:
            self.left -= 1
            if self.left >= 0:
                raise NotNow(target="job web", reasons=("process 100 is just starting a program",))
            return super().confirm(survey, cgroup, patient=patient)

    busy = DumpPorts(**{**_fields(ports(world)), "inspector": Busy(world)})
    if dumped:
        dump(call(), busy)
    else:
        with pytest.raises(NotNow, match="at this moment"):
            dump(call(), busy)
    assert world.journal.count("freeze") == min(moments + 1, ATTEMPTS_MAX)
    assert world.journal.count("thaw") >= world.journal.count("freeze")
    assert not world.frozen
    assert world.criu_running == 0


def test_a_moment_that_does_not_pass_is_tried_in_the_end_where_it_is_forced() -> None:
    world = fake.World()
    asked: list[bool] = []

    class Busy(fake.FakeInspector):
        def confirm(self, survey: fake.FakeView, cgroup: str, *, patient: bool) -> fake.FakeView:
            asked.append(patient)
            if patient:
                raise NotNow(target="job web", reasons=("process 100 is just starting a program",))
            view = super().confirm(survey, cgroup, patient=patient)
            return replace(view, warnings=("Process 100 is just starting a program.",))

    report = dump(
        replace(call(), force=True), DumpPorts(**{**_fields(ports(world)), "inspector": Busy(world)})
    )
    assert asked == [True] * (ATTEMPTS_MAX - 1) + [False]
    assert report.warnings[0] == "Process 100 is just starting a program."
    assert not world.frozen


def test_a_target_that_ends_while_it_is_frozen_is_named() -> None:
    world = fake.World()

    class Ended(fake.FakeInspector):
        def confirm(self, survey: fake.FakeView, cgroup: str, *, patient: bool) -> fake.FakeView:
            return fake.FakeView(())

    with pytest.raises(NoSuchTarget, match="job web"):
        dump(call(), DumpPorts(**{**_fields(ports(world)), "inspector": Ended(world)}))
    assert not world.frozen


def test_a_cgroup_that_did_not_stay_frozen_between_two_trees_fails_the_dump() -> None:
    world = fake.World()

    class Leaky(fake.FakeDumper):
        def carry(self, *arguments: object) -> tuple[()]:
            world.frozen = False
            return ()

    with pytest.raises(DumpFailed, match="not of one instant"):
        dump(call(), DumpPorts(**{**_fields(ports(world)), "dumper": Leaky(world)}))
    assert not world.manifests


def test_an_undo_that_fails_is_told_with_the_first_cause_and_the_others_still_run() -> None:
    world = fake.World(fail_at="confirm")

    class Stuck(fake.FakeFreezer):
        def thaw(self) -> None:
            raise OSError("no such device")

    class Targets(fake.FakeTargets):
        def freezer(self, target: object, operation: object) -> Stuck:
            return Stuck(world)

    with pytest.raises(UndoError, match=r"confirm.*thaw the workload: no such device"):
        dump(call(), DumpPorts(**{**_fields(ports(world)), "targets": Targets(world)}))
    assert not world.gathered
    assert world.operations == 0


def _fields(value: DumpPorts) -> dict[str, object]:
    return {name: getattr(value, name) for name in DumpPorts.__dataclass_fields__}
