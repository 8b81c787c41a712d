"""Every step of a restore fails once: afterwards nothing half-restored is left."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from fakes import world as fake
from fakes.calls import dumped_world, restore_call, restore_ports
from fakes.checkpoints import INODE
from fakes.values import a_tree, an_image_file
from fakes.world import FakeClock

from ckpt.errors import FilesChanged, HostMismatch, Interrupted, ObjectCorrupt, WrongState
from ckpt.flow.restore import restore
from ckpt.model.checkpoint import Checkpoint, SavedFile
from ckpt.model.clocks import TimePolicy
from ckpt.model.inodes import Difference, FileChange, FilesPolicy, InodePolicy
from ckpt.model.shipping import ShippedDirectory
from ckpt.units import SECOND, Nanoseconds, Pid


def change(difference: Difference) -> FileChange:
    return FileChange(path="/srv/state.db", difference=difference, recorded="1", found="2")


def steps() -> list[str]:
    world = dumped_world(with_files=("/srv/state.db",))
    restore(restore_call(), restore_ports(world))
    return [step for step in dict.fromkeys(world.journal) if step not in {"tidy", "settle"}]


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
    world = dumped_world(with_files=("/srv/state.db",))
    world.fail_at = step
    with pytest.raises(fake.InjectedError):
        restore(restore_call(), restore_ports(world))
    assert (world.half_restored, world.restored, world.operations) == (0, 0, 0)
    assert not world.put_back
    assert not world.inodes_put_back
    assert not world.files_written
    assert (world.volumes_held, world.volumes_replaced) == (False, False)


def test_an_interruption_that_comes_when_it_lives_takes_nothing_back_that_it_works_with() -> None:
    world = dumped_world(with_files=("/srv/state.db",))
    world.interrupted_late = True
    with pytest.raises(Interrupted):
        restore(restore_call(), restore_ports(world))
    assert (world.restored, world.operations) == (2, 0)
    assert world.inodes_put_back
    assert world.files_written == ("/srv/state.db",)
    assert world.volumes_replaced
    assert world.put_back
    assert world.journal.count("settle") == 3


def _without_trees(checkpoint: Checkpoint) -> Checkpoint:
    workload = replace(checkpoint.workload, trees=())
    return replace(checkpoint, workload=workload, image_sets=())


def _of_another_tree(checkpoint: Checkpoint) -> Checkpoint:
    first, *others = checkpoint.image_sets
    return replace(checkpoint, image_sets=(replace(first, root=Pid(7)), *others))


def _without_processes(checkpoint: Checkpoint) -> Checkpoint:
    first, *others = checkpoint.workload.trees
    workload = replace(checkpoint.workload, trees=(replace(first, processes=()), *others))
    return replace(checkpoint, workload=workload)


@pytest.mark.parametrize("lie", [_without_trees, _of_another_tree, _without_processes])
def test_a_checkpoint_that_lies_about_its_processes_is_refused_before_anything_is_begun(
    lie: Callable[[Checkpoint], Checkpoint],
) -> None:
    world = dumped_world()
    world.manifests = {each: lie(checkpoint) for each, checkpoint in world.manifests.items()}
    with pytest.raises(ObjectCorrupt, match="it lies about its processes"):
        restore(restore_call(), restore_ports(world))
    assert world.operations == 0
    assert "session" not in world.journal


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


def test_a_new_inode_is_refused_by_verify_and_given_back_by_keep() -> None:
    world = dumped_world()
    world.changes = (change(Difference.INODE),)
    with pytest.raises(FilesChanged, match="inode was 1, is 2"):
        restore(restore_call(inodes=InodePolicy.VERIFY), restore_ports(world))
    assert "put inodes back" not in world.journal
    report = restore(restore_call(inodes=InodePolicy.KEEP), restore_ports(world))
    assert world.journal.index("session") < world.journal.index("put inodes back")
    assert world.journal.index("put inodes back") < world.journal.index("restore 100")
    assert world.journal.index("keep the identities") < world.journal.index("commit restore")
    assert [outcome.path for outcome in report.inodes] == [
        inode.path for checkpoint in world.manifests.values() for inode in checkpoint.inodes
    ]


def test_volumes_are_fetched_and_mounted_before_anything_is_started_and_another_number_is_refused_by_verify() -> (
    None
):
    world = dumped_world()
    restore(restore_call(), restore_ports(world))
    order = [
        world.journal.index(step)
        for step in ("make room for volumes", "fetch /volumes/0.img", "attach volumes", "put back", "session")
    ]
    assert order == sorted(order)
    assert (world.volumes_held, world.volumes_replaced) == (False, True)

    world.device_changes = (replace(change(Difference.DEVICE), path="/srv/volume"),)
    world.journal.clear()
    with pytest.raises(FilesChanged, match="/srv/volume: device"):
        restore(restore_call(inodes=InodePolicy.VERIFY), restore_ports(world))
    assert "session" not in world.journal
    assert (world.volumes_held, world.volumes_replaced) == (False, False)
    restore(restore_call(inodes=InodePolicy.KEEP), restore_ports(world))


def test_ignore_touches_no_file_and_keeps_no_identity() -> None:
    world = dumped_world()
    report = restore(restore_call(inodes=InodePolicy.IGNORE), restore_ports(world))
    assert "put inodes back" not in world.journal
    assert "keep the identities" not in world.journal
    assert report.inodes == ()


def test_saved_files_are_written_back_before_their_inodes_are_looked_for_and_not_compared_before() -> None:
    world = dumped_world(with_files=("/srv/state.db",))
    world.changes = (change(Difference.CONTENT), change(Difference.SIZE), change(Difference.INODE))
    report = restore(restore_call(), restore_ports(world))
    assert world.files_written == ("/srv/state.db",)
    assert world.journal.index("fetch /staging/saved-0") < world.journal.index("write files")
    assert world.journal.index("session") < world.journal.index("write files")
    assert world.journal.index("write files") < world.journal.index("put inodes back")
    assert [change.difference for change in report.file_changes] == [Difference.INODE]


@pytest.mark.parametrize("difference", [Difference.INODE, Difference.MISSING])
def test_verify_refuses_a_saved_file_that_will_not_be_the_same_inode(difference: Difference) -> None:
    world = dumped_world(with_files=("/srv/state.db",))
    world.changes = (change(difference),)
    with pytest.raises(FilesChanged):
        restore(restore_call(inodes=InodePolicy.VERIFY), restore_ports(world))
    assert not world.files_written


def test_saved_files_that_are_wanted_and_not_there_are_wrong_state() -> None:
    world = dumped_world()
    with pytest.raises(WrongState, match="without saved files"):
        restore(restore_call(files=FilesPolicy.SAVED), restore_ports(world))
    assert "begin" not in world.journal


@pytest.mark.parametrize("inodes", [InodePolicy.KEEP, InodePolicy.IGNORE])
def test_newest_leaves_the_files_as_they_are_and_tells_criu_and_the_user(inodes: InodePolicy) -> None:
    world = dumped_world(with_files=("/srv/state.db",))
    record = replace(INODE, path="/srv/state.db", build_id=None, roles=())
    world.manifests = {
        number: replace(checkpoint, inodes=(record,)) for number, checkpoint in world.manifests.items()
    }
    world.changes = (change(Difference.CONTENT), change(Difference.SIZE))
    report = restore(restore_call(inodes=inodes, files=FilesPolicy.NEWEST), restore_ports(world))
    assert world.files_written == ()
    assert world.journal.index("accept /srv/state.db") < world.journal.index("restore 100")
    assert "/srv/state.db" in report.warnings[0]


@pytest.mark.parametrize("difference", [Difference.MISSING, Difference.CONTENT])
def test_newest_takes_neither_a_missing_file_nor_another_program(difference: Difference) -> None:
    world = dumped_world()
    world.changes = (FileChange(path=INODE.path, difference=difference, recorded="1", found="2"),)
    with pytest.raises(FilesChanged):
        restore(restore_call(files=FilesPolicy.NEWEST), restore_ports(world))


def test_a_tree_that_cannot_be_restored_takes_the_others_with_it() -> None:
    world = dumped_world(trees=(a_tree(100), a_tree(666)))
    with pytest.raises(Exception, match="The restore failed"):
        restore(restore_call(), restore_ports(world))
    assert (world.half_restored, world.restored) == (0, 0)


def test_a_wall_clock_that_goes_back_is_told_with_the_amount() -> None:
    world = dumped_world()
    assert restore(restore_call(), restore_ports(world)).warnings == ()
    number, checkpoint = next(iter(world.manifests.items()))
    clocks = replace(
        checkpoint.clocks, realtime_ns=Nanoseconds(FakeClock(world).realtime() + 90 * SECOND + 500_000_000)
    )
    world.manifests[number] = replace(checkpoint, clocks=clocks)
    [warning] = restore(restore_call(), restore_ports(world)).warnings
    assert "the wall clock is 90.5 s behind" in warning


def test_a_monotonic_clock_that_goes_back_by_the_users_wish_is_told_with_the_amount() -> None:
    world = dumped_world()
    number, checkpoint = next(iter(world.manifests.items()))
    ahead = Nanoseconds(checkpoint.clocks.monotonic_ns + 90 * SECOND)
    clocks = replace(checkpoint.clocks, monotonic_ns=ahead)
    world.manifests[number] = replace(checkpoint, clocks=clocks)
    assert restore(restore_call(), restore_ports(world)).warnings == ()
    [warning] = restore(replace(restore_call(), time=TimePolicy.HOST), restore_ports(world)).warnings
    assert "CLOCK_MONOTONIC goes back by 90.0 s" in warning


def test_a_directory_that_is_made_for_saved_files_may_be_missing() -> None:
    world = dumped_world()
    number, checkpoint = next(iter(world.manifests.items()))
    path = "/srv/moved/data/file"
    saved = SavedFile(
        path=path, mode=0o100644, uid=0, gid=0, mtime_ns=Nanoseconds(0), content=an_image_file("saved", 1)
    )
    world.manifests[number] = replace(checkpoint, saved_files=(saved,))
    missing = FileChange(path="/srv/moved", difference=Difference.MISSING, recorded="1", found="2")
    world.changes = (missing,)
    assert restore(restore_call(files=FilesPolicy.SAVED), restore_ports(world)).file_changes == (missing,)
    world.changes = (replace(missing, path="/srv/move"),)
    with pytest.raises(FilesChanged):
        restore(restore_call(files=FilesPolicy.SAVED), restore_ports(world))
    made = ShippedDirectory(path="/srv/move", mode=0o700, uid=0, gid=0)
    restore(replace(restore_call(files=FilesPolicy.SAVED), made=(made,)), restore_ports(world))


def test_a_checkpoint_that_lies_about_a_file_is_refused_before_anything_is_done() -> None:
    world = dumped_world()
    number, checkpoint = next(iter(world.manifests.items()))
    lie = replace(checkpoint.inodes[0], path="/srv/../etc/shadow")
    world.manifests[number] = replace(checkpoint, inodes=(lie,))
    with pytest.raises(ObjectCorrupt, match=r"lies about the file /srv/\.\./etc/shadow"):
        restore(restore_call(), restore_ports(world))
    assert set(world.journal) <= {"check trust", "load"}
