"""What image sets hold, as JSON: the shapes are those of docs/show.md.

Rules: what is in a tree says which ("tree", the pid of its root). Addresses are numbers, sizes are bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ckpt.cli.documents import plain
from ckpt.cli.memory_use import MemoryUse, SpaceUse, memory_use
from ckpt.model.checkpoint import Checkpoint
from ckpt.model.contents import TreeContents


def tasks_part(contents: Iterable[TreeContents]) -> dict[str, Any]:
    """The tasks with their threads."""
    return {"tasks": [{"tree": tree.root} | plain(task) for tree in contents for task in tree.tasks]}


def memory_part(contents: Iterable[TreeContents]) -> dict[str, Any]:
    """The mappings of each process, and shared memory; with sums by kind."""
    return {
        "memory": [_space(tree, space, use) for tree, use in memory_use(contents) for space in use.spaces]
    }


def descriptors_part(contents: Iterable[TreeContents]) -> dict[str, Any]:
    """The descriptors, each with its file."""
    return {
        "descriptors": [{"tree": tree.root} | plain(each) for tree in contents for each in tree.descriptors]
    }


def sockets_part(contents: Iterable[TreeContents]) -> dict[str, Any]:
    """The sockets, and the pipes."""
    trees = tuple(contents)
    return {
        "sockets": [{"tree": tree.root} | plain(each) for tree in trees for each in tree.sockets],
        "pipes": [{"tree": tree.root} | plain(each) for tree in trees for each in tree.pipes],
    }


def contents_document(contents: tuple[TreeContents, ...] | None) -> dict[str, Any]:
    """All of it; every part is null where the images cannot be read."""
    found = tasks_part(contents or ()) | memory_part(contents or ())
    found |= descriptors_part(contents or ()) | sockets_part(contents or ())
    return found if contents is not None else dict.fromkeys(found)


def clocks_part(checkpoint: Checkpoint) -> dict[str, Any]:
    """The clocks at the freeze, what each tree's time namespace adds, the timers and the waits."""
    return {
        "clocks": plain(checkpoint.clocks),
        "time_offsets": [
            {"tree": tree.root} | plain(tree.time_offsets) for tree in checkpoint.workload.trees
        ],
        "timers": plain(checkpoint.timers),
        "waits": plain(checkpoint.waits),
    }


def _space(tree: TreeContents, space: SpaceUse, use: MemoryUse) -> Mapping[str, Any]:
    return {
        "tree": tree.root,
        "name": space.space.name,
        "pids": list(space.space.pids),
        "size_bytes": space.size_bytes,
        "stored_bytes": space.stored_bytes,
        "zero_bytes": space.zero_bytes,
        "areas": [
            plain(each.area)
            | {
                "size_bytes": each.area.size_bytes,
                "stored_bytes": each.stored_bytes,
                "zero_bytes": each.zero_bytes,
            }
            for each in space.areas
        ],
        "kinds": [plain(kind) for kind in use.kinds_of(space)],
    }
