"""A store against a plain dict, with power cuts at any change of its backend.

Nothing that was committed is lost, whatever was under way, and whoever else was at work; after a sweep nothing
is there that nobody needs.
"""

from __future__ import annotations

import contextlib
import zlib
from dataclasses import dataclass
from random import Random
from typing import ClassVar
from unittest import mock

from fakes.backends import Disk, DyingBackend, MemoryBackend, PowerCut
from fakes.checkpoints import a_checkpoint, add, read
from fakes.trust import OwnKey
from fakes.values import a_page, touched
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from ckpt.codec.limits import DELTAS_MAX
from ckpt.codec.objects import digest_of
from ckpt.codec.records import StoreConfig
from ckpt.store import layout, parallel, repacking, writer
from ckpt.store.indexing import read_index
from ckpt.store.marking import Needs, mark
from ckpt.store.objects import Objects
from ckpt.store.opening import open_store
from ckpt.store.repacking import WASTE_MAX, Repacking
from ckpt.store.store import Store
from ckpt.store.upgrading import CONFIG_VERSION
from ckpt.store.vault import Vault
from ckpt.units import CHUNK_BYTES, CheckpointId, Tag

TRUST = OwnKey()
CONFIG = StoreConfig(id=digest_of(b""), signatures_required=True, encryption=None)

# Few different pages, so that checkpoints share chunks; one of them is zeros.
PAGES = [bytes(CHUNK_BYTES), *map(a_page, range(5))]
pages = st.integers(0, len(PAGES) - 1).map(lambda number: PAGES[number])
contents = st.builds(
    lambda whole, rest: b"".join(whole) + rest, st.lists(pages, max_size=5), st.binary(max_size=9)
)
files = st.lists(contents, min_size=1, max_size=3)
tags = st.sampled_from(["a", "b"]).map(Tag)
moments = st.integers(0, 40)
seeds = st.integers(0, 99)  # which unflushed names a power cut takes
places = st.sets(st.integers(0, 4), min_size=1)  # which pages of each file change


@dataclass(frozen=True)
class Plan:
    """A checkpoint that somebody wrote, or tried to; written again it has the same id."""

    files: tuple[bytes, ...]
    created_ns: int


class OpenWriter:
    """A writer that is at work while others come and go."""

    def __init__(self, disk: Disk, store: Store, plan: Plan, parent: CheckpointId | None) -> None:
        self.plan = plan
        self._disk = disk
        self._opened = store.writer(parent)
        self._writer = self._opened.__enter__()
        stored = add(self._writer, named(plan.files))
        # Its packs are there now, and no manifest says so.
        self._writer._builder.finish()
        self._checkpoint = a_checkpoint(*stored, created_ns=plan.created_ns)

    def commit(self) -> CheckpointId:
        found = self._writer.commit(self._checkpoint)
        self.end()
        return found

    def end(self) -> None:
        self._opened.__exit__(None, None, None)

    def die(self) -> None:
        with contextlib.suppress(PowerCut):
            self._opened.__exit__(PowerCut, PowerCut(), None)


def named(plain: tuple[bytes, ...]) -> dict[str, bytes]:
    return {f"{number}.img": content for number, content in enumerate(plain)}


class StoreMachine(RuleBasedStateMachine):
    known: ClassVar[Bundle[CheckpointId]] = Bundle("known")
    vault: ClassVar[Vault] = Vault()

    def __init__(self) -> None:
        super().__init__()
        self.disk = Disk()
        self.kept: dict[CheckpointId, Plan] = {}
        self.tried: list[Plan] = []
        self.tags: dict[Tag, CheckpointId] = {}
        self.open: list[OpenWriter] = []
        self.clock = 0
        self.patches = contextlib.ExitStack()
        for module in (writer, parallel, repacking):
            # One thread, so that a run can be repeated: the n-th change is always the same one.
            self.patches.enter_context(mock.patch.object(module, "WORKERS", 1))
        # Packs are named by their salts, and swept in the order of their names.
        self.patches.enter_context(mock.patch("os.urandom", Random(0).randbytes))

    def teardown(self) -> None:
        for writing in self.open:
            writing.die()
        self.patches.close()

    @initialize()
    def make(self) -> None:
        open_store(MemoryBackend(self.disk), create=True)

    def store(self, backend: MemoryBackend | None = None) -> Store:
        return Store(
            backend or MemoryBackend(self.disk),
            CONFIG,
            config_version=CONFIG_VERSION,
            vault=self.vault,
            trust=TRUST,
        )

    def dying(self, moment: int, *, after: bool) -> Store:
        return self.store(DyingBackend(self.disk, dies_at=moment, after=after))

    def plan(self, plain: list[bytes]) -> Plan:
        self.clock += 1
        self.tried.append(Plan(tuple(plain), self.clock))
        return self.tried[-1]

    def write(self, store: Store, plan: Plan, parent: CheckpointId | None, made: list[CheckpointId]) -> None:
        """Write a checkpoint; its id is in `made` as soon as commit() has returned."""
        with store.writer(parent) as writing:
            stored = add(writing, named(plan.files))
            made.append(writing.commit(a_checkpoint(*stored, created_ns=plan.created_ns)))

    def changed(self, parent: CheckpointId, places_: set[int]) -> list[bytes]:
        """The parent's files, with other bytes in some of their pages."""
        found = []
        for content in self.kept[parent].files:
            cut = [content[at : at + CHUNK_BYTES] for at in range(0, len(content), CHUNK_BYTES)]
            for place in places_:
                if place < len(cut) and len(cut[place]) == CHUNK_BYTES:
                    cut[place] = touched(cut[place], self.clock)
            found.append(b"".join(cut))
        return found

    def cut_power(self, lost: int) -> None:
        numbers = {name: number for number, name in enumerate(self.disk.before)}
        self.disk.power_cut(lambda name: zlib.crc32(f"{lost} {numbers[name]}".encode()) % 3 == 0)
        for writing in self.open:
            writing.die()
        self.open.clear()

    def written(self, plan: Plan, parent: CheckpointId | None) -> CheckpointId:
        made: list[CheckpointId] = []
        self.write(self.store(), plan, parent, made)
        self.kept[made[0]] = plan
        return made[0]

    def written_with_power_cut(
        self, plan: Plan, parent: CheckpointId | None, moment: int, lost: int, *, after: bool
    ) -> set[CheckpointId]:
        made: list[CheckpointId] = []
        with contextlib.suppress(PowerCut):
            self.write(self.dying(moment, after=after), plan, parent, made)
        self.cut_power(lost)
        found = {kept.id for kept in self.store().list()} - self.kept.keys()
        assert set(made) <= found | self.kept.keys(), "a checkpoint was lost that had been committed"
        for checkpoint in found:  # it may have come to be in the last moment
            self.kept[checkpoint] = plan
        return found

    # -------------------------------------------------------------------------------------------- writing

    @rule(target=known, contents_=files)
    def commit(self, contents_: list[bytes]) -> CheckpointId:
        return self.written(self.plan(contents_), None)

    @rule(target=known, contents_=files, parent=known)
    def commit_another_on_top(self, contents_: list[bytes], parent: CheckpointId) -> CheckpointId:
        return self.written(self.plan(contents_), parent)

    @rule(target=known, parent=known, places_=places)
    def commit_with_changed_pages(self, parent: CheckpointId, places_: set[int]) -> object:
        if parent not in self.kept:
            return multiple()
        return self.written(self.plan(self.changed(parent, places_)), parent)

    @rule(target=known, parent=known, place=st.integers(0, 4), others=st.booleans())
    def commit_one_page_of(self, parent: CheckpointId, place: int, *, others: bool) -> object:
        """When the parent goes, most of its pack is waste."""
        if parent not in self.kept:
            return multiple()
        page = slice(place * CHUNK_BYTES, (place + 1) * CHUNK_BYTES)
        plain = [content[page] for content in self.kept[parent].files if len(content) > page.start][:1]
        if others:
            plain.append(a_page(1000 + self.clock))
        return self.written(self.plan(plain or [b""]), parent)

    @rule(target=known, contents_=files, moment=moments, after=st.booleans(), lost=seeds)
    def commit_with_power_cut(self, contents_: list[bytes], moment: int, lost: int, *, after: bool) -> object:
        return multiple(*self.written_with_power_cut(self.plan(contents_), None, moment, lost, after=after))

    @rule(target=known, parent=known, places_=places, moment=moments, after=st.booleans(), lost=seeds)
    def commit_changed_pages_with_power_cut(
        self, parent: CheckpointId, places_: set[int], moment: int, lost: int, *, after: bool
    ) -> object:
        if parent not in self.kept:
            return multiple()
        plan = self.plan(self.changed(parent, places_))
        return multiple(*self.written_with_power_cut(plan, parent, moment, lost, after=after))

    @rule(target=known, number=st.integers(0, 99))
    def commit_once_more(self, number: int) -> object:
        """What was tried before, or removed, comes again with the same id, as from another store."""
        if not self.tried:
            return multiple()
        return self.written(self.tried[number % len(self.tried)], None)

    @rule(contents_=files)
    def give_up(self, contents_: list[bytes]) -> None:
        before = set(self.disk.objects)
        with self.store().writer() as writing:
            add(writing, named(tuple(contents_)))
        assert self.disk.objects.keys() <= before

    # ------------------------------------------------------------------------------ writers beside others

    @rule(contents_=files, parent=st.none() | known, places_=places)
    def begin(self, contents_: list[bytes], parent: CheckpointId | None, places_: set[int]) -> None:
        if parent in self.kept and parent is not None:
            contents_ = self.changed(parent, places_)
        if len(self.open) < 3:
            # It can die with the machine, and does not before.
            store = self.dying(1 << 30, after=True)
            self.open.append(OpenWriter(self.disk, store, self.plan(contents_), parent))

    @rule(target=known, number=st.integers(0, 2))
    def commit_what_was_begun(self, number: int) -> object:
        if number >= len(self.open):
            return multiple()
        writing = self.open.pop(number)
        found = writing.commit()
        self.kept[found] = writing.plan
        return found

    @rule(number=st.integers(0, 2))
    def give_up_what_was_begun(self, number: int) -> None:
        if number < len(self.open):
            self.open.pop(number).end()

    # ----------------------------------------------------------------------------------------------- tags

    @rule(checkpoint=known, tag=tags)
    def tag(self, checkpoint: CheckpointId, tag: Tag) -> None:
        if checkpoint in self.kept:
            self.store().tag(checkpoint, tag)
            self.tags[tag] = checkpoint

    @rule(checkpoint=known, tag=tags, moment=moments, after=st.booleans(), lost=seeds)
    def tag_with_power_cut(
        self, checkpoint: CheckpointId, tag: Tag, moment: int, lost: int, *, after: bool
    ) -> None:
        if checkpoint not in self.kept:
            return
        was, done = self.tags.get(tag), False
        try:
            self.dying(moment % 4, after=after).tag(checkpoint, tag)
            done = True
        except PowerCut:
            pass
        self.cut_power(lost)
        found = self.tags_found().get(tag)
        assert found in ({checkpoint} if done else {was, checkpoint})
        self.tags = {name: kept for name, kept in (self.tags | {tag: found}).items() if kept}

    @rule(tag=tags)
    def untag(self, tag: Tag) -> None:
        if tag in self.tags:
            self.store().untag(tag)
            del self.tags[tag]

    # ------------------------------------------------------------------------------------------- removing

    @rule(checkpoint=consumes(known))
    def remove(self, checkpoint: CheckpointId) -> None:
        if checkpoint in self.kept:
            self.store().remove((checkpoint,))
            self.forget({checkpoint})
            self.assert_no_garbage()

    @rule(checkpoint=consumes(known), moment=moments, after=st.booleans(), lost=seeds)
    def remove_with_power_cut(self, checkpoint: CheckpointId, moment: int, lost: int, *, after: bool) -> None:
        if checkpoint not in self.kept:
            return
        with contextlib.suppress(PowerCut):
            self.dying(moment, after=after).remove((checkpoint,))
        self.cut_power(lost)
        gone = self.kept.keys() - {kept.id for kept in self.store().list()}
        assert gone <= {checkpoint}
        self.forget(gone)

    @rule()
    def sweep(self) -> None:
        self.store().remove(())
        self.assert_no_garbage()

    @rule(lost=seeds)
    def idle_power_cut(self, lost: int) -> None:
        before = {name: self.disk.objects[name] for name in self.needed()}
        self.cut_power(lost)
        assert {name: self.disk.objects.get(name) for name in before} == before

    # ------------------------------------------------------------------------------------ what always holds

    @invariant()
    def everything_is_there(self) -> None:
        store = self.store()
        found = {kept.id for kept in store.list()}
        assert found == self.kept.keys()
        assert self.tags_found() == self.tags
        assert store.verify(None).problems == ()
        for checkpoint, plan in self.kept.items():
            assert read(store, checkpoint) == named(plan.files)
            store.check_trust(checkpoint)
            for file in store._objects.placement_of(checkpoint).files:
                assert len(file.layers) <= DELTAS_MAX + 1

    def tags_found(self) -> dict[Tag, CheckpointId]:
        return {tag: kept.id for kept in self.store().list() for tag in kept.tags}

    def forget(self, gone: set[CheckpointId]) -> None:
        self.kept = {kept: plan for kept, plan in self.kept.items() if kept not in gone}
        self.tags = {tag: kept for tag, kept in self.tags.items() if kept not in gone}

    def needs(self) -> Needs:
        needs = Needs()
        mark(Objects(MemoryBackend(self.disk), self.vault), set(self.kept), needs)
        return needs

    def needed(self) -> set[str]:
        """Everything that the checkpoints need, and their writers."""
        objects = Objects(MemoryBackend(self.disk), self.vault)
        needs = self.needs()
        names = {layout.CONFIG} | {layout.pack(name) for name in needs.packs if needs.needs(name)}
        for checkpoint in self.kept:
            placement = objects.newest_placement(checkpoint)
            assert placement is not None
            names |= {layout.manifest(checkpoint), layout.receipt(checkpoint), placement.object}
            names.add(f"signatures/{checkpoint}@{TRUST.signing_key().public.hex()}")
        return names & self.disk.objects.keys()

    def assert_no_garbage(self) -> None:
        backend = MemoryBackend(self.disk)
        marks = {name for name in self.disk.objects if name.startswith("tags/")}
        indexes = {name for name in self.disk.objects if name.startswith("indexes/")}
        assert len(marks) == len(self.tags)
        assert self.disk.objects.keys() - marks - indexes <= self.needed() | backend.pinned()
        packs = {name for name in self.disk.objects if name.startswith("packs/")}
        for index in indexes:
            assert {layout.pack(name) for name in read_index(backend, index).values()} <= packs
        needs, repacking_ = self.needs(), Repacking(backend, self.vault, self.store()._packs)
        assert all(repacking_.waste(ref, needs) < WASTE_MAX for ref in needs.packs.values())
        assert self.disk.leftovers == 0
        again = self.store().remove(())
        assert (again.removed_objects, again.repacked_bytes) == (0, 0)


class EncryptedStoreMachine(StoreMachine):
    vault = Vault(bytes(range(32)))


# Shrinking what fails takes minutes, and the steps that are printed can be followed as they are.
PHASES = tuple(phase for phase in Phase if phase is not Phase.shrink)

StoreMachine.TestCase.settings = settings(
    max_examples=70, stateful_step_count=18, deadline=None, phases=PHASES
)
EncryptedStoreMachine.TestCase.settings = settings(
    max_examples=40, stateful_step_count=18, deadline=None, phases=PHASES
)
test_a_store_keeps_its_promises_whatever_happens = StoreMachine.TestCase
test_an_encrypted_store_keeps_them_too = EncryptedStoreMachine.TestCase
