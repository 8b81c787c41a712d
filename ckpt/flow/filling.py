"""Begin what a migration's target receives with a checkpoint of its own store: what the source has the same is not sent.

Rules:
- It is a guess, and proves nothing: the source compares the SHA-256 of each page with its own, and sends what differs.
  So nobody need trust the checkpoint, and the workload may have changed in any way since.
- Trees of then and of now go together by their order, spaces by the names of their page maps, pages by addresses.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from ckpt.errors import ObjectCorrupt, WrongState
from ckpt.flow.ports import MemoryLayouts, Store
from ckpt.model.checkpoint import ImageSet, StoredFile
from ckpt.model.memory import AddressSpace
from ckpt.model.memory import PageRun as StoredRun
from ckpt.model.pages import PageRun
from ckpt.units import PAGE_BYTES, CheckpointId, Pid

_PIECE_PAGES: Final = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredPages:
    """The pages of one space: `runs` are those of the pages file, in its order."""

    space: str
    file: StoredFile
    runs: tuple[StoredRun, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Filling:
    """The memory of a stored checkpoint, in the spaces of a workload that is about to come."""

    store: Store
    checkpoint: CheckpointId
    spaces: tuple[StoredPages, ...]

    def pages(self) -> Iterator[tuple[str, tuple[PageRun, ...], bytes]]:
        """All its pages, at most 1 MiB at once: a space, the runs, which ascend, and the verified content.

        Raises:
            ObjectMissing, ObjectCorrupt: the store cannot give them.
        """
        for stored in self.spaces:
            offset = 0
            for runs in _pieces(stored.runs):
                size = PAGE_BYTES * sum(run.count for run in runs)
                yield stored.space, runs, self.store.read_range(self.checkpoint, stored.file, offset, size)
                offset += size


def find_filling(ref: str, roots: Sequence[Pid], store: Store, layouts: MemoryLayouts) -> Filling:
    """The memory of the checkpoint that `ref` names; none of its pages is read yet.

    Args:
        ref: Which one, as people write it.
        roots: The roots of the workload's trees at the source.
        store: Has the checkpoint.
        layouts: Reads where its pages lie.

    Raises:
        ObjectMissing, AmbiguousRef: there is no such checkpoint, or it could be several.
        ObjectCorrupt: it is damaged.
        WrongState: it has another number of trees than the workload.
    """
    stored = store.load(store.resolve(ref))
    sets = stored.checkpoint.image_sets
    if len(sets) != len(roots):
        raise WrongState(
            subject=f"Checkpoint {stored.id[:12]}",
            state=f"of {len(sets)} process tree(s)",
            operation=f"a migration of {len(roots)} tree(s)",
            needed="to be of as many",
            remedy="Name another checkpoint, or leave out --base.",
        )
    return Filling(
        store=store,
        checkpoint=stored.id,
        spaces=tuple(
            _stored_pages(root, images, space)
            for root, images in zip(roots, sets, strict=True)
            for space in _spaces_of(stored.id, images, store, layouts)
            if space.pages_file
        ),
    )


def _spaces_of(
    checkpoint: CheckpointId, images: ImageSet, store: Store, layouts: MemoryLayouts
) -> tuple[AddressSpace, ...]:
    wanted = frozenset(layouts.wanted(file.name for file in images.files))

    def fill(directory: str) -> None:
        for file in images.files:
            if file.name in wanted:
                store.fetch(checkpoint, file, f"{directory}/{file.name}")

    return layouts.read(fill)


def _stored_pages(root: Pid, images: ImageSet, space: AddressSpace) -> StoredPages:
    runs = tuple(run for run in space.runs if run.chunk is not None)
    pages = sum(run.count for run in runs)
    for file in images.files:
        if file.name == space.pages_file and file.size_bytes == pages * PAGE_BYTES:
            return StoredPages(space=f"{root}/{space.name}", file=file, runs=runs)
    raise ObjectCorrupt(
        kind="page map", name=space.name, reason=f"{space.pages_file} has not the {pages} pages that it names"
    )


def _pieces(runs: Iterable[StoredRun]) -> Iterator[tuple[PageRun, ...]]:
    """The same pages in pieces of _PIECE_PAGES; the last one may be smaller."""
    piece: list[PageRun] = []
    room = _PIECE_PAGES
    for run in runs:
        page, left = run.page, run.count
        while left:
            count = min(left, room)
            piece.append(PageRun(page, count))
            page, left, room = page + count, left - count, room - count
            if not room:
                yield tuple(piece)
                piece, room = [], _PIECE_PAGES
    if piece:
        yield tuple(piece)
