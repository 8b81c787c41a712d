"""Every step of a restore fails once: afterwards nothing half-restored is left."""

from __future__ import annotations

import pytest
from fakes import world as fake
from fakes.calls import dumped_world, restore_call, restore_ports
from fakes.values import a_tree

from ckpt.errors import FilesChanged, HostMismatch
from ckpt.flow.restore import restore
from ckpt.model.inodes import Difference, FileChange, InodePolicy


def change(difference: Difference) -> FileChange:
    return FileChange(path="/srv/state.db", difference=difference, recorded="1", found="2")


def steps() -> list[str]:
    world = dumped_world()
    restore(restore_call(), restore_ports(world))
    return [step for step in dict.fromkeys(world.journal) if step != "tidy"]


def test_everything_is_fetched_and_compared_before_anything_is_started() -> None:
    world = dumped_world()
    report = restore(restore_call(), restore_ports(world))
    started = world.journal.index("session")
    for step in ("check trust", "load", "compare files", "check pids", "fetch /staging/100/pstree.img"):
        assert world.journal.index(step) < started
    assert world.journal.index("restore 200") < world.journal.index("commit restore")
    assert report.pids == (100, 200)
    assert world.restored == 2


@pytest.mark.parametrize("step", steps())
def test_whatever_step_fails_nothing_half_restored_is_left(step: str) -> None:
    world = dumped_world()
    world.fail_at = step
    with pytest.raises(fake.InjectedError):
        restore(restore_call(), restore_ports(world))
    assert (world.half_restored, world.restored, world.operations) == (0, 0, 0)
    assert not world.put_back


def test_taken_pids_are_refused_by_name_and_not_asked_for_in_a_new_namespace() -> None:
    world = dumped_world()
    world.taken_pids = ("pid 100 belongs to sleep",)
    with pytest.raises(HostMismatch, match="belongs to sleep"):
        restore(restore_call(), restore_ports(world))
    restore(restore_call(new_pids=True), restore_ports(world))
    assert world.restored == 2


@pytest.mark.parametrize("policy", [InodePolicy.KEEP, InodePolicy.VERIFY])
@pytest.mark.parametrize("difference", [Difference.MISSING, Difference.SIZE, Difference.CONTENT])
def test_changed_content_is_refused_unless_ignored(policy: InodePolicy, difference: Difference) -> None:
    world = dumped_world()
    world.changes = (change(difference),)
    with pytest.raises(FilesChanged, match=r"/srv/state\.db"):
        restore(restore_call(inodes=policy), restore_ports(world))
    assert "session" not in world.journal
    restore(restore_call(inodes=InodePolicy.IGNORE), restore_ports(world))
    assert world.restored == 2


def test_a_new_inode_is_refused_by_verify_and_told_by_keep() -> None:
    world = dumped_world()
    world.changes = (change(Difference.INODE),)
    with pytest.raises(FilesChanged, match="inode was 1, is 2"):
        restore(restore_call(inodes=InodePolicy.VERIFY), restore_ports(world))
    report = restore(restore_call(inodes=InodePolicy.KEEP), restore_ports(world))
    assert "another inode" in report.warnings[0]


def test_a_tree_that_cannot_be_restored_takes_the_others_with_it() -> None:
    world = dumped_world(trees=(a_tree(100), a_tree(666)))
    with pytest.raises(Exception, match="The restore failed"):
        restore(restore_call(), restore_ports(world))
    assert (world.half_restored, world.restored) == (0, 0)
