"""A store against a plain dict, with power cuts at any change of its backend.

Nothing that was committed is lost, whatever was under way; after a sweep nothing is there that nobody needs.
"""

from __future__ import annotations

import contextlib
import tempfile
import zlib
from pathlib import Path
from unittest import mock

from fakes.backends import Disk, DyingBackend, MemoryBackend, PowerCut
from fakes.checkpoints import a_checkpoint
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from ckpt.codec.objects import digest_of
from ckpt.codec.records import StoreConfig
from ckpt.store import layout, parallel, writer
from ckpt.store.opening import open_store
from ckpt.store.store import Store
from ckpt.units import ByteCount, CheckpointId, Tag

CHUNK_BYTES = ByteCount(4096)

# Few different pages, so that checkpoints share chunks; one of them is zeros.
pages = st.integers(0, 5).map(lambda number: bytes([number]) * CHUNK_BYTES)
contents = st.builds(
    lambda whole, rest: b"".join(whole) + rest, st.lists(pages, max_size=4), st.binary(max_size=9)
)
files = st.lists(contents, min_size=1, max_size=3)
tags = st.sampled_from(["a", "b"]).map(Tag)
moments = st.integers(0, 40)
seeds = st.integers(0, 99)  # which unflushed names a power cut takes


class StoreMachine(RuleBasedStateMachine):
    known = Bundle("known")

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None)
        self.disk = Disk()
        self.kept: dict[CheckpointId, list[bytes]] = {}
        self.tags: dict[Tag, CheckpointId] = {}
        self.clock = 0
        self.patches = contextlib.ExitStack()
        for module in (writer, parallel):
            # One thread, so that a run can be repeated: the n-th change is always the same one.
            self.patches.enter_context(mock.patch.object(module, "WORKERS", 1))

    def teardown(self) -> None:
        self.patches.close()
        self.directory.cleanup()

    @initialize()
    def make(self) -> None:
        open_store(MemoryBackend(self.disk), create=True)

    def store(self, backend: MemoryBackend | None = None) -> Store:
        config = StoreConfig(id=digest_of(b""), chunk_bytes=CHUNK_BYTES)
        return Store(backend or MemoryBackend(self.disk), config)

    def dying(self, moment: int, *, after: bool) -> Store:
        return self.store(DyingBackend(self.disk, dies_at=moment, after=after))

    def write(self, store: Store, contents_: list[bytes], made: list[CheckpointId]) -> None:
        """Write a checkpoint; its id is in `made` as soon as commit() has returned."""
        self.clock += 1
        with store.writer() as writing:
            stored = []
            for number, content in enumerate(contents_):
                path = Path(self.directory.name, str(number))
                path.write_bytes(content)
                stored.append(writing.add_file(str(path), f"{number}.img"))
            made.append(writing.commit(a_checkpoint(*stored, created_ns=self.clock)))

    def cut_power(self, lost: int) -> None:
        self.disk.power_cut(lambda name: zlib.crc32(f"{lost} {name}".encode()) % 3 == 0)

    @rule(target=known, contents_=files)
    def commit(self, contents_: list[bytes]) -> CheckpointId:
        made: list[CheckpointId] = []
        self.write(self.store(), contents_, made)
        self.kept[made[0]] = contents_
        return made[0]

    @rule(target=known, contents_=files, moment=moments, after=st.booleans(), lost=seeds)
    def commit_with_power_cut(self, contents_: list[bytes], moment: int, lost: int, *, after: bool) -> object:
        made: list[CheckpointId] = []
        with contextlib.suppress(PowerCut):
            self.write(self.dying(moment, after=after), contents_, made)
        self.cut_power(lost)
        found = {kept.id for kept in self.store().list()} - self.kept.keys()
        assert set(made) <= found, "a checkpoint was lost that had been committed"
        for checkpoint in found:  # it may have come to be in the last moment
            self.kept[checkpoint] = contents_
        return multiple(*found)

    @rule(contents_=files)
    def give_up(self, contents_: list[bytes]) -> None:
        with self.store().writer() as writing:
            for number, content in enumerate(contents_):
                path = Path(self.directory.name, str(number))
                path.write_bytes(content)
                writing.add_file(str(path), str(number))

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
            self.dying(moment % 12, after=after).remove((checkpoint,))
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
        before = dict(self.disk.objects)
        self.cut_power(lost)
        garbage = before.keys() - self.needed()
        assert {name: self.disk.objects.get(name) for name in before.keys() - garbage} == {
            name: before[name] for name in before.keys() - garbage
        }

    @invariant()
    def everything_is_there(self) -> None:
        store = self.store()
        found = {kept.id: kept for kept in store.list()}
        assert found.keys() == self.kept.keys()
        assert self.tags_found() == self.tags
        assert store.verify(None).problems == ()
        target = Path(self.directory.name, "target")
        for checkpoint, expected in self.kept.items():
            for file, content in zip(found[checkpoint].checkpoint.image_sets[0].files, expected, strict=True):
                store.fetch(file, str(target))
                assert target.read_bytes() == content

    def tags_found(self) -> dict[Tag, CheckpointId]:
        return {tag: kept.id for kept in self.store().list() for tag in kept.tags}

    def forget(self, gone: set[CheckpointId]) -> None:
        self.kept = {kept: content for kept, content in self.kept.items() if kept not in gone}
        self.tags = {tag: kept for tag, kept in self.tags.items() if kept not in gone}

    def needed(self) -> set[str]:
        names = {layout.CONFIG}
        for checkpoint, contents_ in self.kept.items():
            names |= {layout.manifest(checkpoint), layout.receipt(checkpoint)}
            for content in contents_:
                for start in range(0, len(content), CHUNK_BYTES):
                    chunk = content[start : start + CHUNK_BYTES]
                    if any(chunk):
                        names.add(layout.chunk(digest_of(chunk)))
        return names

    def assert_no_garbage(self) -> None:
        found = {name for name in self.disk.objects if not name.startswith("tags/")}
        assert found <= self.needed()
        assert len(self.disk.objects) - len(found) == len(self.tags)
        assert self.disk.leftovers == 0


StoreMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=15, deadline=None)
test_a_store_keeps_its_promises_whatever_happens = StoreMachine.TestCase
