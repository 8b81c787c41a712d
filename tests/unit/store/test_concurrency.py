"""Several at work in one store: at every moment of the one, the other does all that it has to do."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fakes.backends import Disk, MemoryBackend
from fakes.checkpoints import read, write
from fakes.values import a_page, touched

from ckpt.codec.objects import digest_of
from ckpt.codec.records import StoreConfig
from ckpt.errors import CkptError, Locked, ObjectMissing
from ckpt.store import parallel, repacking, writer
from ckpt.store.backend import Content, ObjectStat
from ckpt.store.opening import open_local
from ckpt.store.store import Store
from ckpt.units import ByteCount, CheckpointId, Tag

CONFIG = StoreConfig(id=digest_of(b""), signatures_required=False, encryption=None)
PAGES = [a_page(number) for number in range(20)]
WHOLE = {"pages-1.img": b"".join(PAGES)}
FEW = {"pages-1.img": b"".join([touched(PAGES[0], 1), *PAGES[1:5], a_page(90)])}


class SharedBackend(MemoryBackend):
    """Another one does something just before the n-th call of any kind."""

    def __init__(self, disk: Disk, moment: int, other: Callable[[], object]) -> None:
        super().__init__(disk)
        self._left = moment
        self._other = other
        self.was_met = False

    def _step(self) -> None:
        self._left -= 1
        if self._left == -1:
            self.was_met = True
            with contextlib.suppress(Locked):  # the other one would wait, and come a moment later
                self._other()

    def create(self, name: str, content: Content) -> ByteCount | None:
        self._step()
        return super().create(name, content)

    def flush(self) -> None:
        self._step()
        super().flush()

    def read(self, name: str, limit: int) -> bytes | None:
        self._step()
        return super().read(name, limit)

    def read_part(self, name: str, offset: int, count: int) -> bytes | None:
        self._step()
        return super().read_part(name, offset, count)

    def stat(self, name: str) -> ObjectStat | None:
        self._step()
        return super().stat(name)

    def list(self, folder: str) -> Iterator[str]:
        self._step()
        return super().list(folder)

    def delete(self, name: str) -> ByteCount:
        self._step()
        return super().delete(name)

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        self._step()
        with super().writing():
            yield

    @contextlib.contextmanager
    def sweeping(self, *, patient: bool) -> Iterator[None]:
        self._step()
        with super().sweeping(patient=patient):
            yield


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (writer, parallel, repacking):
        monkeypatch.setattr(module, "WORKERS", 1)


def opened(backend: MemoryBackend) -> Store:
    return Store(backend, CONFIG, config_version=2)


def a_store() -> tuple[Disk, CheckpointId, CheckpointId]:
    """One that is big, one that needs a few pages of it."""
    disk = Disk()
    big, _ = write(opened(MemoryBackend(disk)), WHOLE)
    small, _ = write(opened(MemoryBackend(disk)), {"x": b"".join(PAGES[:4])}, parent=big, created_ns=2)
    return disk, big, small


def moments(
    one: Callable[[Store], object], other: Callable[[Store], object]
) -> Iterator[tuple[Disk, CheckpointId, CheckpointId]]:
    """The store after the one and the other have done their work, the other at each moment of the one."""
    for moment in range(400):
        disk, big, small = a_store()
        backend = SharedBackend(disk, moment, lambda disk=disk: other(opened(MemoryBackend(disk))))
        one(opened(backend))
        yield disk, big, small
        if not backend.was_met:
            return
    raise AssertionError


def assert_whole(disk: Disk, *expected: CheckpointId) -> None:
    store = opened(MemoryBackend(disk))
    assert {kept.id for kept in store.list()} == set(expected)
    assert store.verify(None).problems == ()
    store.remove(())
    assert store.verify(None).problems == ()
    assert store.remove(()).removed_objects == 0


def test_a_commit_is_whole_whenever_a_sweep_comes() -> None:
    made: list[CheckpointId] = []

    def commit(store: Store) -> None:
        big = next(kept.id for kept in store.list() if kept.checkpoint.created_ns == 1)
        made[:] = [write(store, FEW, parent=big, created_ns=3)[0]]

    for disk, big, small in moments(commit, lambda store: store.remove(())):
        assert_whole(disk, big, small, *made)
        assert read(opened(MemoryBackend(disk)), made[0]) == FEW


def test_a_commit_is_whole_whenever_its_parent_is_removed() -> None:
    made: list[CheckpointId] = []
    _, big, small = a_store()

    def commit(store: Store) -> None:
        made[:] = [write(store, FEW, parent=big, created_ns=3)[0]]

    def remove(store: Store) -> None:
        store.remove((big,))

    gone = 0
    for disk, _, _ in moments(commit, remove):
        left = {kept.id for kept in opened(MemoryBackend(disk)).list()}
        gone += big not in left
        assert_whole(disk, small, *made, *({big} & left))
        assert read(opened(MemoryBackend(disk)), made[0]) == FEW
        assert read(opened(MemoryBackend(disk)), small) == {"x": b"".join(PAGES[:4])}
    assert gone > 5


def test_a_removal_harms_nothing_whenever_a_commit_comes() -> None:
    """Its chunks are in the pack that the removal writes anew, or takes."""
    _, big, small = a_store()
    made: set[CheckpointId] = set()

    def commit(store: Store) -> None:
        made.add(write(store, FEW, parent=big, created_ns=3)[0])

    together = 0
    for disk, _, _ in moments(lambda store: store.remove((big,)), commit):
        store = opened(MemoryBackend(disk))
        found = {kept.id for kept in store.list()} & made
        together += bool(found)
        assert_whole(disk, small, *found)
        for checkpoint in found:
            assert read(store, checkpoint) == FEW
    assert together > 5


def test_a_removal_that_is_joined_by_another_one_succeeds() -> None:
    _, big, small = a_store()
    for disk, _, _ in moments(lambda store: store.remove((big,)), lambda store: store.remove(())):
        assert_whole(disk, small)
        assert read(opened(MemoryBackend(disk)), small) == {"x": b"".join(PAGES[:4])}


def test_a_removal_succeeds_whenever_another_checkpoint_is_removed() -> None:
    _, big, small = a_store()
    for disk, _, _ in moments(lambda store: store.remove((big,)), lambda store: store.remove((small,))):
        left = {kept.id for kept in opened(MemoryBackend(disk)).list()}
        assert left <= {small}
        assert_whole(disk, *left)


def test_reading_gives_all_or_says_that_it_is_gone_whenever_it_is_removed() -> None:
    _, big, small = a_store()
    whole = 0

    def look(store: Store) -> None:
        nonlocal whole
        assert store.verify(None).problems == ()
        assert store.list()
        with contextlib.suppress(ObjectMissing):
            assert read(store, big) == WHOLE
            whole += 1
        assert read(store, small) == {"x": b"".join(PAGES[:4])}

    for disk, _, _ in moments(look, lambda store: store.remove((big,))):
        left = {kept.id for kept in opened(MemoryBackend(disk)).list()}
        assert_whole(disk, small, *({big} & left))
    assert whole


def test_statistics_are_told_whenever_something_is_removed() -> None:
    _, big, _ = a_store()
    for disk, _, _ in moments(lambda store: store.statistics(), lambda store: store.remove((big,))):
        left = opened(MemoryBackend(disk))
        assert left.statistics().checkpoints == len(left.list())


def test_two_that_move_one_tag_leave_it_at_one_of_the_two() -> None:
    _, big, small = a_store()
    for disk, _, _ in moments(
        lambda store: store.tag(big, Tag("t")), lambda store: store.tag(small, Tag("t"))
    ):
        store = opened(MemoryBackend(disk))
        assert store.resolve("t") in {big, small}
        assert_whole(disk, big, small)


def test_the_same_checkpoint_written_by_two_at_once_is_there_once() -> None:
    _, big, small = a_store()
    made: set[CheckpointId] = set()

    def commit(store: Store) -> None:
        made.add(write(store, FEW, parent=big, created_ns=3)[0])

    for disk, _, _ in moments(commit, commit):
        assert_whole(disk, big, small, *made)
        assert read(opened(MemoryBackend(disk)), next(iter(made))) == FEW
    assert len(made) == 1


def test_many_that_write_and_one_that_removes_go_on_side_by_side(tmp_path: Path) -> None:
    """On the real directory, with threads in the place of processes; each has its own idea of the store."""
    place = str(tmp_path / "store")
    open_local(place)
    made: dict[int, list[tuple[CheckpointId, bytes]]] = {0: [], 1: []}
    errors: list[BaseException] = []
    ended = threading.Event()

    def work(number: int) -> None:
        try:
            parent, content = None, [a_page(1000 * number + page) for page in range(30)]
            for turn in range(12):
                content[turn] = touched(content[turn], turn)
                content[20] = a_page(10_000 * (number + 1) + turn)
                plain = b"".join(content)
                parent, _ = write(
                    open_local(place), {"x": plain}, parent=parent, created_ns=turn, job=f"j{number}"
                )
                made[number].append((parent, plain))
        except BaseException as error:
            errors.append(error)

    def prune() -> None:
        try:
            while not ended.is_set():
                store = open_local(place)
                for job in ("j0", "j1"):
                    ids = [kept.id for kept in store.list() if kept.checkpoint.job == job]
                    store.remove(tuple(ids[:-2]))
        except CkptError as error:
            errors.append(error)

    writers = [threading.Thread(target=work, args=(number,)) for number in made]
    pruner = threading.Thread(target=prune)
    for thread in (*writers, pruner):
        thread.start()
    for thread in writers:
        thread.join()
    ended.set()
    pruner.join()
    assert errors == []
    store = open_local(place)
    for number in made:
        for checkpoint, plain in made[number][-2:]:
            assert read(store, checkpoint) == {"x": plain}
    store.remove(())
    assert store.verify(None).problems == ()
    assert store.remove(()).removed_objects == 0
