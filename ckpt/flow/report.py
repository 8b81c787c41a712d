"""What a picture of a job's checkpoints shows: the last of them whole, and what each changed since the one before.

Rule: only metadata and digests are read, no page.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ckpt.errors import ObjectMissing
from ckpt.flow.contents import page_digests, read_contents
from ckpt.flow.matching import pair_spaces, pair_tasks, pair_trees
from ckpt.flow.pages import StoredSpace, compare_pages
from ckpt.flow.ports import ContentsReader, Store
from ckpt.model.changes import PageCounts, SpacePages
from ckpt.model.contents import TreeContents
from ckpt.model.memory import AddressSpace
from ckpt.model.reports import StoredCheckpoint
from ckpt.units import PAGE_BYTES, ByteCount, CheckpointId, Pid


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """One checkpoint of several; `pages` compares it with the one before, without one all of its pages are new."""

    stored: StoredCheckpoint
    before: CheckpointId | None
    pages: PageCounts

    @property
    def changed_bytes(self) -> ByteCount:
        """The memory that is not as it was in the one before, or was not there."""
        return ByteCount((self.pages.changed + self.pages.new) * PAGE_BYTES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """What the report shows; `moments` from the oldest to the newest, the rest is of the newest."""

    moments: tuple[Moment, ...]
    contents: tuple[TreeContents, ...]
    spaces: tuple[tuple[Pid, SpacePages], ...]

    @property
    def newest(self) -> StoredCheckpoint:
        """The checkpoint that is shown whole."""
        return self.moments[-1].stored


@dataclass(frozen=True, slots=True, kw_only=True)
class _Opened:
    stored: StoredCheckpoint
    contents: tuple[TreeContents, ...]


def picture(refs: tuple[str, ...], store: Store, reader: ContentsReader) -> Picture:
    """Read the checkpoints that the references name, in the order of their making.

    The first is compared with its parent, if the store has it, each other one with the one before it.

    Raises:
        ObjectMissing, AmbiguousRef: a reference names none, or several.
        ObjectCorrupt: a checkpoint is damaged.
    """
    ids = tuple(dict.fromkeys(store.resolve(ref) for ref in refs))
    ordered = sorted((store.load(each) for each in ids), key=lambda stored: stored.checkpoint.created_ns)
    before = _parent(ordered[0], store)
    earlier = None if before is None else _open(before, store, reader)
    moments: list[Moment] = []
    spaces: tuple[tuple[Pid, SpacePages], ...] = ()
    for stored in ordered:
        now = _open(stored, store, reader)
        spaces = tuple(_compare(now, earlier, store))
        moments.append(
            Moment(
                stored=stored,
                before=None if earlier is None else earlier.stored.id,
                pages=sum((pages.counts for _, pages in spaces), PageCounts()),
            )
        )
        earlier = now
    assert earlier is not None
    return Picture(moments=tuple(moments), contents=earlier.contents, spaces=spaces)


def _parent(stored: StoredCheckpoint, store: Store) -> StoredCheckpoint | None:
    if stored.checkpoint.parent is None:
        return None
    try:
        return store.load(stored.checkpoint.parent)
    except ObjectMissing:
        return None


def _open(stored: StoredCheckpoint, store: Store, reader: ContentsReader) -> _Opened:
    return _Opened(stored=stored, contents=read_contents(store, reader, stored))


def _compare(now: _Opened, earlier: _Opened | None, store: Store) -> Iterator[tuple[Pid, SpacePages]]:
    if earlier is None:
        for tree in now.contents:
            for space in tree.memory:
                yield tree.root, compare_pages(_stored(now, tree.root, space, store), None)
        return
    for was, there in pair_trees(earlier.contents, now.contents):
        if there is None:
            continue
        pids = {one.pid: other.pid for one, other in pair_tasks(was, there) if one and other}
        for before, present in pair_spaces(was, there, pids):
            if present is not None:
                known = None if before is None or was is None else _stored(earlier, was.root, before, store)
                yield there.root, compare_pages(_stored(now, there.root, present, store), known)


def _stored(opened: _Opened, root: Pid, space: AddressSpace, store: Store) -> StoredSpace:
    return StoredSpace(space=space, digests=page_digests(store, opened.stored, root, space))
