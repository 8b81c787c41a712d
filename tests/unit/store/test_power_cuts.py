"""Every change of a commit, a tag and a removal, cut before and after it, with every choice of lost names."""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fakes.backends import Disk, DyingBackend, MemoryBackend, PowerCut
from fakes.checkpoints import a_checkpoint

from ckpt.codec.objects import digest_of
from ckpt.codec.records import StoreConfig
from ckpt.store import parallel, writer
from ckpt.store.opening import open_store
from ckpt.store.store import Store
from ckpt.units import ByteCount, CheckpointId, Tag

CONFIG = StoreConfig(id=digest_of(b""), chunk_bytes=ByteCount(4096))
SHARED, OLD, NEW = b"s" * 4096, b"o" * 4096, b"n" * 4096

Action = Callable[[Store], object]


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (writer, parallel):
        monkeypatch.setattr(module, "WORKERS", 1)


def write(store: Store, path: Path, content: bytes, created_ns: int) -> CheckpointId:
    path.write_bytes(content)
    with store.writer() as writing:
        return writing.commit(a_checkpoint(writing.add_file(str(path), "pages-1.img"), created_ns=created_ns))


@pytest.fixture
def disk(tmp_path: Path) -> tuple[Disk, CheckpointId]:
    """A store with one checkpoint, all of it durable."""
    disk = Disk()
    open_store(MemoryBackend(disk), create=True)
    return disk, write(Store(MemoryBackend(disk), CONFIG), tmp_path / "file", SHARED + OLD, 1)


def cuts(disk: Disk, action: Action) -> Iterator[tuple[Store, bool]]:
    """The store after each possible power cut during the action, and whether the action had returned."""
    for moment, after in itertools.product(range(100), (False, True)):
        died = copy_of(disk)
        returned = False
        with contextlib.suppress(PowerCut):
            action(Store(DyingBackend(died, dies_at=moment, after=after), CONFIG))
            returned = True
        unflushed = sorted(died.before)
        assert len(unflushed) <= 8
        for count in range(len(unflushed) + 1):
            for lost in map(set, itertools.combinations(unflushed, count)):
                left = copy_of(died)
                left.power_cut(lost.__contains__)
                yield Store(MemoryBackend(left), CONFIG), returned
        if returned:
            return
    raise AssertionError


def copy_of(disk: Disk) -> Disk:
    other = Disk()
    other.objects, other.before = copy.copy(disk.objects), copy.copy(disk.before)
    return other


def assert_whole(store: Store) -> set[CheckpointId]:
    """Nothing is wrong, now and after a sweep; the ids."""
    assert store.verify(None).problems == ()
    found = {kept.id for kept in store.list()}
    store.remove(())
    assert store.verify(None).problems == ()
    assert {kept.id for kept in store.list()} == found
    assert store.remove(()).removed_objects == 0
    assert len(list(store._backend.list("tags"))) == sum(len(kept.tags) for kept in store.list())
    return found


def test_a_commit_is_there_whole_or_not_at_all(disk: tuple[Disk, CheckpointId], tmp_path: Path) -> None:
    before, old = disk
    outcomes = set()
    for store, returned in cuts(before, lambda store: write(store, tmp_path / "file", SHARED + NEW, 2)):
        found = assert_whole(store)
        assert old in found
        assert len(found) == 2 or not returned
        outcomes.add(len(found))
    assert outcomes == {1, 2}


def test_a_commit_relies_only_on_durable_names_of_others(
    disk: tuple[Disk, CheckpointId], tmp_path: Path
) -> None:
    before, _ = disk
    other = Store(MemoryBackend(before), CONFIG)
    (tmp_path / "other").write_bytes(NEW)
    with other.writer() as writing:
        # Another writer has just made the chunk, and has not flushed its name.
        writing.add_file(str(tmp_path / "other"), "x")
        writing._settle(0)
        assert before.before
        for store, returned in cuts(before, lambda store: write(store, tmp_path / "file", SHARED + NEW, 2)):
            found = assert_whole(store)
            assert len(found) == 2 or not returned


def test_a_removal_takes_one_checkpoint_and_harms_no_other(
    disk: tuple[Disk, CheckpointId], tmp_path: Path
) -> None:
    before, old = disk
    store = Store(MemoryBackend(before), CONFIG)
    kept = write(store, tmp_path / "file", SHARED + NEW, 2)
    store.tag(old, Tag("a"))
    store.tag(kept, Tag("b"))
    outcomes = set()
    for cut, returned in cuts(before, lambda store: store.remove((old,))):
        found = assert_whole(cut)
        assert found in ([{kept}] if returned else [{kept}, {kept, old}])
        assert cut.resolve("b") == kept
        outcomes.add(len(found))
    assert outcomes == {1, 2}


def test_a_tag_is_where_it_was_or_where_it_goes(disk: tuple[Disk, CheckpointId], tmp_path: Path) -> None:
    before, old = disk
    store = Store(MemoryBackend(before), CONFIG)
    new = write(store, tmp_path / "file", NEW, 2)
    store.tag(old, Tag("t"))
    for cut, returned in cuts(before, lambda store: store.tag(new, Tag("t"))):
        assert cut.resolve("t") in ({new} if returned else {old, new})
        where = cut.resolve("t")
        assert_whole(cut)
        assert cut.resolve("t") == where


def test_a_tag_that_is_taken_away_never_comes_back(disk: tuple[Disk, CheckpointId], tmp_path: Path) -> None:
    before, old = disk
    store = Store(MemoryBackend(before), CONFIG)
    new = write(store, tmp_path / "file", NEW, 2)
    marks = dict(before.objects)
    store.tag(old, Tag("t"))
    marks = {name: content for name, content in before.objects.items() if name not in marks}
    store.tag(new, Tag("t"))
    before.objects |= marks  # as a crash between making the new mark and deleting the old one leaves it
    for cut, returned in cuts(before, lambda store: store.untag(Tag("t"))):
        tags = [tag for kept in cut.list() for tag in kept.tags if kept.id == old]
        assert tags == []
        assert not (returned and [tag for kept in cut.list() for tag in kept.tags])
