"""A restore whose memory comes late: all else is there before, and what fails leaves as little as without."""

from __future__ import annotations

from dataclasses import replace

import pytest
from fakes import world as fake
from fakes.calls import dumped_world, restore_call, restore_ports
from fakes.late_memory import FakeLateMemory

from ckpt.errors import Interrupted, ObjectCorrupt
from ckpt.flow.restore import restore


def steps() -> list[str]:
    world = dumped_world()
    restore(restore_call(), replace(restore_ports(world), late=FakeLateMemory(world)))
    return [step for step in dict.fromkeys(world.journal) if step not in {"tidy", "settle", "memory follows"}]


def test_memory_follows_after_all_else_was_there_and_it_goes_on() -> None:
    world = dumped_world()
    late = FakeLateMemory(world)
    report = restore(restore_call(), replace(restore_ports(world), late=late))
    order = [
        "can memory come late",
        "load",
        "fetch /staging/100/pstree.img",
        "take over memory of 100",
        "serve memory",
        "session",
        "commit restore",
        "memory follows",
    ]
    assert [step for step in world.journal if step in order] == order
    assert not any("pages-" in step for step in world.journal if step.startswith("fetch"))
    assert report.lazy
    assert report.resumed_ns < report.total_ns
    assert not late.serves


@pytest.mark.parametrize("step", steps())
def test_whatever_step_fails_nothing_is_left_and_nobody_serves(step: str) -> None:
    world = dumped_world()
    late = FakeLateMemory(world)
    world.fail_at = step
    with pytest.raises(fake.InjectedError):
        restore(restore_call(), replace(restore_ports(world), late=late))
    assert (world.half_restored, world.restored, world.operations) == (0, 0, 0)
    assert not late.serves


def test_memory_that_cannot_come_is_told_and_what_the_restore_did_to_files_stays() -> None:
    world = dumped_world(with_files=("/srv/state.db",))
    late = FakeLateMemory(world, lost=ObjectCorrupt(kind="pack", name="12ab", reason="it is gone"))
    with pytest.raises(ObjectCorrupt, match="12ab"):
        restore(restore_call(), replace(restore_ports(world), late=late))
    # It ran: its files are as it may have changed them.
    assert world.files_written
    assert world.operations == 0


def test_where_it_is_interrupted_when_the_workload_lives_all_memory_comes_nevertheless() -> None:
    world = dumped_world()
    late = FakeLateMemory(world)
    world.interrupted_late = True
    with pytest.raises(Interrupted):
        restore(restore_call(), replace(restore_ports(world), late=late))
    assert "memory follows" in world.journal
