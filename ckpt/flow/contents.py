"""What the image sets of a checkpoint hold: only metadata is fetched, none of the pages."""

from __future__ import annotations

from ckpt.flow.ports import ContentsReader, Store
from ckpt.model.checkpoint import Checkpoint, ImageSet
from ckpt.model.contents import TreeContents
from ckpt.model.memory import AddressSpace
from ckpt.model.reports import StoredCheckpoint
from ckpt.model.workload import Tree
from ckpt.units import Pid


def read_contents(store: Store, reader: ContentsReader, stored: StoredCheckpoint) -> tuple[TreeContents, ...]:
    """What is in each tree, in the order of the checkpoint's.

    Raises:
        ObjectMissing, ObjectCorrupt: an image file is not there, or not what it should be.
    """
    return tuple(_read(store, reader, stored, tree, images) for tree, images in image_sets(stored.checkpoint))


def image_sets(checkpoint: Checkpoint) -> tuple[tuple[Tree, ImageSet], ...]:
    """The trees with their image sets."""
    return tuple(zip(checkpoint.workload.trees, checkpoint.image_sets, strict=True))


def page_digests(store: Store, stored: StoredCheckpoint, root: Pid, space: AddressSpace) -> bytes:
    """The digests of the pages of an address space in the tree with this root; nothing if none is stored.

    Raises:
        ObjectMissing, ObjectCorrupt: the store cannot tell.
    """
    for tree, images in image_sets(stored.checkpoint):
        for file in images.files:
            if tree.root == root and space.pages_file and file.name == space.pages_file:
                return store.page_digests(stored.id, file)
    return b""


def _read(
    store: Store, reader: ContentsReader, stored: StoredCheckpoint, tree: Tree, images: ImageSet
) -> TreeContents:
    wanted = frozenset(reader.wanted(file.name for file in images.files))

    def fill(directory: str) -> None:
        for file in images.files:
            if file.name in wanted:
                store.fetch(stored.id, file, f"{directory}/{file.name}")

    return reader.read(fill, tree.root, {process.pid_inside: process.pid for process in tree.processes})
