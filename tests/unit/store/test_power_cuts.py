"""Every change of what a store does, cut before and after it, with every choice of lost names.

Where the names that are not durable are many, the choices are none, all, each alone and each but one, and some
more.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections.abc import Callable, Iterator
from random import Random

import pytest
from fakes.backends import Disk, DyingBackend, MemoryBackend, PowerCut
from fakes.checkpoints import a_checkpoint, add, read
from fakes.checkpoints import write as write_files
from fakes.old_store import an_old_store
from fakes.trust import OwnKey
from fakes.values import a_page, touched

from ckpt.codec.records import StoreConfig
from ckpt.errors import WrongKey
from ckpt.store import layout, parallel, repacking, upgrading, writer
from ckpt.store.indexing import read_index
from ckpt.store.opening import Keys, open_store
from ckpt.store.sealing import wrap
from ckpt.store.store import Store
from ckpt.store.vault import Vault
from ckpt.units import CheckpointId, Digest, Tag

SHARED, OLD, NEW = a_page(1), a_page(2), a_page(3)
CHOICES_MAX = 24
TRUST = OwnKey()

Action = Callable[[Store], object]


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (writer, parallel, repacking):
        monkeypatch.setattr(module, "WORKERS", 1)


def opened(backend: MemoryBackend) -> Store:
    return open_store(backend, create=False, keys=Keys(trust=TRUST))


def write(store: Store, content: bytes, created_ns: int, parent: CheckpointId | None = None) -> CheckpointId:
    return write_files(store, {"pages-1.img": content}, created_ns=created_ns, parent=parent)[0]


@pytest.fixture
def disk() -> tuple[Disk, CheckpointId]:
    """A store with one checkpoint, all of it durable."""
    disk = Disk()
    open_store(MemoryBackend(disk), create=True, keys=Keys(trust=TRUST))
    return disk, write(opened(MemoryBackend(disk)), SHARED + OLD, 1)


def cuts(
    disk: Disk, action: Action, open_: Callable[[MemoryBackend], Store] = opened
) -> Iterator[tuple[Store, bool]]:
    """The store after each possible power cut during the action, and whether the action had returned."""
    for moment, after in itertools.product(range(200), (False, True)):
        died = copy_of(disk)
        returned = False
        with contextlib.suppress(PowerCut):
            action(open_(DyingBackend(died, dies_at=moment, after=after)))
            returned = True
        for lost in choices(sorted(died.before)):
            left = copy_of(died)
            left.power_cut(lost.__contains__)
            yield open_(MemoryBackend(left)), returned
        if returned:
            return
    raise AssertionError


def choices(names: list[str]) -> list[set[str]]:
    """Which of these names are lost."""
    if 1 << len(names) <= CHOICES_MAX:
        counts = range(len(names) + 1)
        return [set(lost) for count in counts for lost in itertools.combinations(names, count)]
    found = [set(), set(names), *({name} for name in names), *(set(names) - {name} for name in names)]
    random = Random(len(names))
    while len(found) < CHOICES_MAX:
        found.append({name for name in names if random.random() < 0.5})
    return found


def copy_of(disk: Disk) -> Disk:
    other = Disk()
    other.objects, other.before = copy.copy(disk.objects), copy.copy(disk.before)
    other.leftovers = disk.leftovers
    return other


def assert_whole(store: Store) -> set[CheckpointId]:
    """Nothing is wrong, now and after a sweep, which leaves nothing that is not needed; the ids."""
    assert store.verify(None).problems == ()
    found = {kept.id: read(store, kept.id) for kept in store.list()}
    store.remove(())
    assert store.verify(None).problems == ()
    assert {kept.id: read(store, kept.id) for kept in store.list()} == found
    again = store.remove(())
    assert (again.removed_objects, again.repacked_bytes) == (0, 0)
    assert_no_garbage(store, set(found))
    return set(found)


def assert_no_garbage(store: Store, kept: set[CheckpointId]) -> None:
    backend = store._backend
    assert len(list(backend.list("tags"))) == sum(len(found.tags) for found in store.list())
    packs = set(backend.list("packs"))
    for name in backend.list("indexes"):
        assert {layout.pack(pack) for pack in read_index(backend, name).values()} <= packs, "a stale index"
    for folder in ("placements", "receipts", "signatures"):
        named = [Digest(name.partition("/")[2].partition("@")[0]) for name in backend.list(folder)]
        assert len(named) == len(set(named))
        assert set(named) <= set(kept)


def test_a_commit_is_there_whole_or_not_at_all(disk: tuple[Disk, CheckpointId]) -> None:
    before, old = disk
    outcomes = set()
    for store, returned in cuts(before, lambda store: write(store, SHARED + NEW, 2)):
        found = assert_whole(store)
        assert old in found
        assert len(found) == 2 or not returned
        for checkpoint in found:
            store.check_trust(checkpoint)
        outcomes.add(len(found))
    assert outcomes == {1, 2}


def test_a_commit_on_top_of_a_parent_is_there_whole_or_not_at_all(disk: tuple[Disk, CheckpointId]) -> None:
    before, old = disk
    content = SHARED + touched(OLD, 1)
    outcomes = set()
    for store, returned in cuts(before, lambda store: write(store, content, 2, parent=old)):
        found = assert_whole(store)
        for checkpoint in found - {old}:
            assert read(store, checkpoint) == {"pages-1.img": content}
        assert len(found) == 2 or not returned
        outcomes.add(len(found))
    assert outcomes == {1, 2}


def test_a_commit_relies_only_on_durable_names_of_others(disk: tuple[Disk, CheckpointId]) -> None:
    before, _ = disk
    other = opened(MemoryBackend(before))
    with other.writer() as writing:
        # Another writer has just made its pack, and has not flushed its name.
        add(writing, {"x": NEW})
        writing._builder.finish()
        assert before.before
        for store, returned in cuts(before, lambda store: write(store, SHARED + NEW, 2)):
            found = assert_whole(store)
            assert len(found) == 2 or not returned


def test_a_commit_relies_on_no_index_and_no_pack_that_may_be_lost(disk: tuple[Disk, CheckpointId]) -> None:
    """The other one has committed all but its manifest, and nothing of it is durable."""
    before, _ = disk
    dying = DyingBackend(before, dies_at=4, after=True)
    with contextlib.suppress(PowerCut):
        write(opened(dying), NEW, 5)
    assert any(name.startswith("indexes/") for name in before.objects)
    before.before = {
        name: None for name in before.objects if name.startswith(("packs/", "indexes/"))
    } | dict.fromkeys(before.before)
    for kept in opened(MemoryBackend(before))._objects.placement_of(disk[1]).packs:
        before.before.pop(layout.pack(kept.name), None)
    for store, returned in cuts(before, lambda store: write(store, SHARED + NEW, 2)):
        found = {kept.id for kept in store.list()}
        assert store.verify(None).problems == ()
        assert len(found) == 2 or not returned


def test_what_was_cut_can_be_written_again_with_the_same_id(disk: tuple[Disk, CheckpointId]) -> None:
    """As a pull that was cut is pulled again: what is left of the first must not be taken for the second's."""
    before, _ = disk
    for store, _ in cuts(before, lambda store: write(store, SHARED + NEW, 2)):
        again = write(store, SHARED + NEW, 2)
        assert read(store, again) == {"pages-1.img": SHARED + NEW}
        assert len(assert_whole(store)) == 2


def test_what_a_cut_removal_left_does_not_harm_the_same_checkpoint_when_it_comes_again(
    disk: tuple[Disk, CheckpointId],
) -> None:
    before, old = disk
    for store, _ in cuts(before, lambda store: store.remove((old,))):
        assert write(store, SHARED + OLD, 1) == old
        assert read(store, old) == {"pages-1.img": SHARED + OLD}
        assert assert_whole(store) == {old}


def test_of_two_that_write_the_same_one_relies_on_nothing_that_the_other_may_lose(
    disk: tuple[Disk, CheckpointId],
) -> None:
    """The other one is at its last step: its placement has the name, and what it refers to may be lost."""
    before, old = disk
    durable = set(before.objects)
    names: set[str] = set()
    for moment in range(20):
        died = copy_of(before)
        with contextlib.suppress(PowerCut):
            write(opened(DyingBackend(died, dies_at=moment, after=True)), SHARED + NEW, 2)
        new = died.objects.keys() - durable
        if any(name.startswith("manifests/") for name in new):
            break
        names = {name for name in new if not name.startswith("indexes/")}
        died.objects = {name: died.objects[name] for name in durable | names}
        died.before = dict.fromkeys(names)
        for store, returned in cuts(died, lambda store: write(store, SHARED + NEW, 2)):
            assert store.verify(None).problems == ()
            assert {kept.id for kept in store.list()} > {old} or not returned
    assert any(name.startswith("placements/") for name in names)


def test_a_removal_takes_one_checkpoint_and_harms_no_other(disk: tuple[Disk, CheckpointId]) -> None:
    before, old = disk
    store = opened(MemoryBackend(before))
    kept = write(store, SHARED + NEW, 2)
    store.tag(old, Tag("a"))
    store.tag(kept, Tag("b"))
    outcomes = set()
    for cut, returned in cuts(before, lambda store: store.remove((old,))):
        found = assert_whole(cut)
        assert found in ([{kept}] if returned else [{kept}, {kept, old}])
        assert cut.resolve("b") == kept
        outcomes.add(len(found))
    assert outcomes == {1, 2}


def test_a_removal_that_writes_packs_anew_harms_no_other(disk: tuple[Disk, CheckpointId]) -> None:
    """Two children share a page and a base with the one that goes, whose pack is mostly waste then."""
    before, _ = disk
    store = opened(MemoryBackend(before))
    base = write(store, b"".join(map(a_page, range(10, 20))), 2)
    contents = {
        write(store, touched(a_page(10), mark) + a_page(11), 3 + mark, parent=base): touched(a_page(10), mark)
        + a_page(11)
        for mark in range(2)
    }
    store.tag(base, Tag("base"))
    repacked = opened(MemoryBackend(copy_of(before))).remove((base,))
    assert repacked.repacked_bytes > 0
    for cut, returned in cuts(before, lambda store: store.remove((base,))):
        assert not (returned and cut.has(base))
        for checkpoint, content in contents.items():
            assert read(cut, checkpoint) == {"pages-1.img": content}
        assert assert_whole(cut) >= set(contents)


def test_a_tag_is_where_it_was_or_where_it_goes(disk: tuple[Disk, CheckpointId]) -> None:
    before, old = disk
    store = opened(MemoryBackend(before))
    new = write(store, NEW, 2)
    store.tag(old, Tag("t"))
    for cut, returned in cuts(before, lambda store: store.tag(new, Tag("t"))):
        assert cut.resolve("t") in ({new} if returned else {old, new})
        where = cut.resolve("t")
        assert_whole(cut)
        assert cut.resolve("t") == where


def test_a_tag_that_is_taken_away_never_comes_back(disk: tuple[Disk, CheckpointId]) -> None:
    before, old = disk
    store = opened(MemoryBackend(before))
    new = write(store, NEW, 2)
    marks = dict(before.objects)
    store.tag(old, Tag("t"))
    marks = {name: content for name, content in before.objects.items() if name not in marks}
    store.tag(new, Tag("t"))
    before.objects |= marks  # as a crash between making the new mark and deleting the old one leaves it
    for cut, returned in cuts(before, lambda store: store.untag(Tag("t"))):
        tags = [tag for kept in cut.list() for tag in kept.tags if kept.id == old]
        assert tags == []
        assert not (returned and [tag for kept in cut.list() for tag in kept.tags])


def test_a_signature_that_was_reported_is_there(disk: tuple[Disk, CheckpointId]) -> None:
    before, old = disk
    other = OwnKey(2)

    def as_other(backend: MemoryBackend) -> Store:
        return open_store(backend, create=False, keys=Keys(trust=other))

    for cut, returned in cuts(before, lambda store: store.sign(old), as_other):
        assert cut.verify(None).problems == ()
        keys = {signature.public_key for signature in cut.signatures(old)}
        assert TRUST.signing_key().public.hex() in keys
        assert other.signing_key().public.hex() in keys or not returned


def test_a_setting_is_as_it_was_or_as_it_was_to_be(disk: tuple[Disk, CheckpointId]) -> None:
    before, old = disk
    outcomes = set()
    for cut, returned in cuts(before, lambda store: store.set_signatures_required(False)):
        assert assert_whole(cut) == {old}
        assert not (returned and cut.signatures_required)
        outcomes.add(cut.signatures_required)
    assert outcomes == {True, False}


def test_a_store_whose_key_is_changed_opens_with_one_of_the_two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upgrading, "wrap", lambda secret, master: wrap(secret, master, kdf_cost_log2=10))
    master = bytes(range(32))
    disk = Disk()
    config = StoreConfig(
        id=Digest("ab" * 32),
        signatures_required=False,
        encryption=upgrading.encryption_of(wrap(b"old", master, kdf_cost_log2=10)),
    )
    upgrading.put_config(MemoryBackend(disk), config)
    content = SHARED + OLD
    sealed = Store(MemoryBackend(disk), config, config_version=2, vault=Vault(master))
    kept = write(sealed, content, 1)

    def with_either(backend: MemoryBackend) -> Store:
        for secret in (b"new", b"old"):
            with contextlib.suppress(Exception):
                return open_store(backend, create=False, keys=Keys(secret=lambda secret=secret: secret))
        raise AssertionError

    outcomes = set()
    for cut, returned in cuts(disk, lambda store: store.rekey(b"new"), with_either):
        assert read(cut, kept) == {"pages-1.img": content}
        backend = MemoryBackend(cut._backend.disk)  # type: ignore[attr-defined]
        try:
            open_store(backend, create=False, keys=Keys(secret=lambda: b"new"))
            outcomes.add("new")
        except WrongKey:
            assert not returned
            outcomes.add("old")
    assert outcomes == {"old", "new"}


def test_an_upgrade_leaves_the_store_of_version_1_or_makes_it_one_of_today() -> None:
    before, contents = an_old_store()
    before.before.clear()
    versions = set()
    for cut, returned in cuts(before, lambda store: store.upgrade()):
        assert cut.verify(None).problems == ()
        for checkpoint, plain in contents.items():
            assert read(cut, checkpoint) == plain
        assert not (returned and cut._config_version < upgrading.CONFIG_VERSION)
        versions.add(cut._config_version)
        write(cut, SHARED + NEW, 9)
        assert assert_whole(cut) >= set(contents)
    assert versions == {1, 2}


def test_the_first_commit_into_a_store_of_version_1_is_there_whole_or_not_at_all() -> None:
    before, contents = an_old_store()
    before.before.clear()
    [old, *_] = contents
    for cut, returned in cuts(before, lambda store: write(store, SHARED + NEW, 9, parent=old)):
        found = assert_whole(cut)
        assert found >= set(contents)
        assert len(found) > len(contents) or not returned
        for checkpoint, plain in contents.items():
            assert read(cut, checkpoint) == plain


def test_a_removal_from_a_store_of_version_1_harms_no_other() -> None:
    before, contents = an_old_store()
    before.before.clear()
    [old, kept, *_] = contents
    for cut, returned in cuts(before, lambda store: store.remove((old,))):
        found = assert_whole(cut)
        assert found in ([set(contents) - {old}] if returned else [set(contents) - {old}, set(contents)])
        assert read(cut, kept) == contents[kept]


def test_a_checkpoint_that_is_given_up_leaves_what_a_sweep_takes(disk: tuple[Disk, CheckpointId]) -> None:
    before, old = disk

    def give_up(store: Store) -> None:
        with store.writer(old) as writing:
            add(writing, {"x": SHARED + NEW})
            writing._builder.finish()

    for cut, _ in cuts(before, give_up):
        assert assert_whole(cut) == {old}


def test_nothing_is_written_of_a_checkpoint_that_names_a_file_which_nobody_added(
    disk: tuple[Disk, CheckpointId],
) -> None:
    before, old = disk
    store = opened(MemoryBackend(before))
    objects = dict(before.objects)
    with store.writer() as writing:
        [stored] = add(writing, {"x": NEW})
        with contextlib.suppress(Exception), store.writer() as other:
            other.commit(a_checkpoint(stored))
    assert before.objects == objects
    assert {kept.id for kept in store.list()} == {old}
