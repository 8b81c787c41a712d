"""Which checkpoint a job goes on from, and when it does not."""

from __future__ import annotations

from dataclasses import replace

import pytest
from fakes import world as fake
from fakes.calls import dumped_world, restore_ports
from fakes.values import a_saved_file
from fakes.world import FakeJobs, FakeStore, World

from ckpt.errors import ObjectCorrupt, WrongState
from ckpt.flow.resume import ResumeCall, Resumed, resume
from ckpt.model.clocks import TimePolicy
from ckpt.model.inodes import InodePolicy
from ckpt.units import CheckpointId, JobName


def three_checkpoints() -> tuple[World, list[CheckpointId]]:
    """The oldest is the first; one of another job is the newest of all."""
    world = dumped_world()
    (checkpoint,) = world.manifests.values()
    ids = [CheckpointId(f"{number:x}" * 64) for number in range(1, 5)]
    world.manifests = dict.fromkeys(ids[:3], checkpoint)
    world.manifests[ids[3]] = replace(checkpoint, job=JobName("other"))
    return world, ids


def resumed(world: World, job: str = "web", *, having: str = "") -> Resumed | None:
    call = ResumeCall(job=JobName(job), time=TimePolicy.SUSPEND, inodes=InodePolicy.KEEP, having=having)
    return resume(call, restore_ports(world), FakeStore(world), FakeJobs(world))


def test_the_newest_that_is_whole_is_restored_and_the_damaged_newer_ones_are_told() -> None:
    world, ids = three_checkpoints()
    found = resumed(world)
    assert found is not None
    assert (found.report.id, found.damaged) == (ids[2], ())
    world.damaged = {ids[2], ids[1]}
    found = resumed(world)
    assert found is not None
    assert found.report.id == ids[0]
    assert [ids[2][:12] in found.damaged[0], ids[1][:12] in found.damaged[1]] == [True, True]


def test_a_damaged_one_that_does_not_say_whose_it_is_hides_no_older_one() -> None:
    world, ids = three_checkpoints()
    world.damaged = world.without_receipt = {ids[2]}
    found = resumed(world)
    assert found is not None
    assert found.report.id == ids[1]
    (sentence,) = found.damaged
    assert "may be one of this job" in sentence


@pytest.mark.parametrize("with_receipt", [True, False])
def test_where_none_is_whole_the_job_does_not_begin_anew_in_silence(*, with_receipt: bool) -> None:
    world, ids = three_checkpoints()
    world.damaged = set(ids[:3])
    world.without_receipt = set() if with_receipt else set(ids[:3])
    with pytest.raises(ObjectCorrupt, match=r"3 checkpoint\(s\) of job web") as refused:
        resumed(world)
    assert "without --resume" in refused.value.advice
    assert world.half_restored == world.operations == 0


def test_a_job_without_checkpoints_is_none_unless_a_damaged_one_may_be_its() -> None:
    world, ids = three_checkpoints()
    assert resumed(world, "new") is None
    world.damaged = {ids[0]}
    assert resumed(world, "new") is None
    world.without_receipt = {ids[0]}
    with pytest.raises(ObjectCorrupt):
        resumed(world, "new")


def test_one_that_lacks_a_file_that_is_needed_is_passed_over_and_told() -> None:
    world, ids = three_checkpoints()
    saved = (a_saved_file("/srv/stdin.position", "position"),)
    world.manifests[ids[0]] = replace(world.manifests[ids[0]], saved_files=saved)
    found = resumed(world, having="/srv/stdin.position")
    assert found is not None
    assert found.report.id == ids[0]
    assert [each[:12] in told for each, told in zip((ids[2], ids[1]), found.damaged, strict=True)] == [
        True,
        True,
    ]
    assert resumed(world, having="/srv/another") is None


def test_any_other_failure_is_not_answered_with_an_older_checkpoint() -> None:
    for step in ("check trust", "compare files", "restore 100"):
        world, _ = three_checkpoints()
        world.fail_at = step
        with pytest.raises(fake.InjectedError):
            resumed(world)
        assert world.journal.count("check trust") <= 2, "an older one was tried"


def test_one_that_is_filed_under_the_wrong_job_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    world, ids = three_checkpoints()
    filed = FakeStore.resolve
    monkeypatch.setattr(
        FakeStore, "resolve", lambda store, ref: ids[3] if ref == "web~0" else filed(store, ref)
    )
    found = resumed(world)
    assert found is not None
    assert found.report.id == ids[1]
    assert "names job web" in found.damaged[0]


def test_a_job_that_went_to_another_host_is_refused_with_its_name() -> None:
    world, _ = three_checkpoints()
    world.moved_to = "node-7"
    with pytest.raises(WrongState, match="moved to node-7"):
        resumed(world)
    assert "session" not in world.journal
