"""Who is who in two checkpoints: trees, tasks, sockets, pipes and mappings.

Rules: what has the same number is the same. Where no number is the same, as between two jobs or after a restore, what
is at the same place is: the first tree of one is the first of the other.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Final, TypeVar

from ckpt.model.contents import Holder, Pipe, Socket, Task, TreeContents
from ckpt.model.memory import AddressSpace, Area, AreaKind
from ckpt.units import Pid

_ONCE: Final = frozenset((AreaKind.HEAP, AreaKind.STACK))

Item = TypeVar("Item")
Pair = tuple[Item | None, Item | None]
"""The same thing before and after; None where it is not there."""

Key = Callable[[Item], Hashable]


def pair_by(
    before: Iterable[Item], after: Iterable[Item], *keys: tuple[Key[Item], Key[Item]]
) -> list[Pair[Item]]:
    """The things of both sides, paired by the first keys that fit: those after in their order, then what went.

    Args:
        before: The things before.
        after: The things after.
        keys: What is equal where two things are the same: of a thing before, and of one after.
    """
    left = list(before)
    sought = list(after)
    partners: dict[int, Item] = {}
    for before_key, after_key in keys:
        by_key: dict[Hashable, deque[int]] = {}
        for place, item in enumerate(left):
            by_key.setdefault(before_key(item), deque()).append(place)
        taken = set()
        for place, item in enumerate(sought):
            if place not in partners and (found := by_key.get(after_key(item))):
                taken.add(found[0])
                partners[place] = left[found.popleft()]
        left = [item for place, item in enumerate(left) if place not in taken]
    pairs: list[Pair[Item]] = [(partners.get(place), item) for place, item in enumerate(sought)]
    return pairs + [(item, None) for item in left]


def both(key: Key[Item]) -> tuple[Key[Item], Key[Item]]:
    """The same key for both sides."""
    return key, key


def pair_trees(before: Sequence[TreeContents], after: Sequence[TreeContents]) -> list[Pair[TreeContents]]:
    """The trees, by the pid of their root; if no root is the same, in their order."""
    if not {tree.root for tree in before} & {tree.root for tree in after}:
        return _in_order(before, after)
    return pair_by(before, after, both(lambda tree: tree.root))


def pair_tasks(before: TreeContents | None, after: TreeContents | None) -> list[Pair[Task]]:
    """The tasks of a tree, by their pid inside; if none is the same, in their order."""
    ours, theirs = (tree.tasks if tree else () for tree in (before, after))
    if not {task.pid_inside for task in ours} & {task.pid_inside for task in theirs}:
        return _in_order(ours, theirs)
    return pair_by(ours, theirs, both(lambda task: task.pid_inside))


def pair_sockets(
    before: TreeContents | None, after: TreeContents | None, pids: Mapping[Pid, Pid]
) -> list[Pair[Socket]]:
    """The sockets of a tree, by their number; else by what they are and who holds them.

    Args:
        before: The tree before.
        after: The tree after.
        pids: From a pid before to the same task's after.
    """

    def key(pids: Mapping[Pid, Pid]) -> Key[Socket]:
        return lambda socket: (
            socket.family,
            socket.type,
            socket.protocol,
            socket.local,
            _holders(socket.holders, pids),
        )

    return pair_by(
        before.sockets if before else (),
        after.sockets if after else (),
        # A packet socket has no number: its own hash, which is equal if all of it is.
        both(lambda socket: (socket.family, socket.number or socket)),
        (key(pids), key({})),
    )


def pair_pipes(
    before: TreeContents | None, after: TreeContents | None, pids: Mapping[Pid, Pid]
) -> list[Pair[Pipe]]:
    """The pipes of a tree, by their number; else by who holds them; the arguments are those of pair_sockets()."""

    def key(pids: Mapping[Pid, Pid]) -> Key[Pipe]:
        return lambda pipe: (pipe.path, _holders(pipe.holders, pids))

    return pair_by(
        before.pipes if before else (),
        after.pipes if after else (),
        both(lambda pipe: (bool(pipe.path), pipe.number)),
        (key(pids), key({})),
    )


def pair_areas(before: Sequence[Area], after: Sequence[Area]) -> list[Pair[Area]]:
    """The mappings of a space: those of the same place, then those of the same beginning or end and content."""
    return pair_by(
        before,
        after,
        both(lambda area: (area.start, area.end, area.kind, area.path, area.offset)),
        both(lambda area: (area.start, area.kind, area.path)),
        both(lambda area: (area.end, area.kind, area.path)),
        # A program that was started anew has its addresses drawn by lot.
        both(
            lambda area: (
                (area.kind, area.path, area.offset, area.permissions)
                if area.path or area.kind in _ONCE
                else area
            )
        ),
    )


def pair_spaces(
    before: TreeContents | None, after: TreeContents | None, pids: Mapping[Pid, Pid]
) -> list[Pair[AddressSpace]]:
    """The memory of a tree: that of processes by their pids, shared memory by where it is mapped, then by its name."""
    ours, theirs = (tree.memory if tree else () for tree in (before, after))
    processes = pair_by(
        [space for space in ours if space.pids],
        [space for space in theirs if space.pids],
        (lambda space: pids.get(space.pids[0], space.pids[0]), lambda space: space.pids[0]),
    )
    renamed: dict[str, str] = {}
    for one, other in processes:
        for was, now in pair_areas(one.areas if one else (), other.areas if other else ()):
            if was and now and was.shared_space and now.shared_space:
                renamed.setdefault(was.shared_space, now.shared_space)
    shared = pair_by(
        [space for space in ours if not space.pids],
        [space for space in theirs if not space.pids],
        (lambda space: renamed.get(space.name, space.name), lambda space: space.name),
    )
    return processes + shared


def _holders(holders: tuple[Holder, ...], pids: Mapping[Pid, Pid]) -> tuple[tuple[Pid, int], ...]:
    return tuple(sorted((pids.get(holder.pid, holder.pid), holder.fd) for holder in holders))


def _in_order(before: Sequence[Item], after: Sequence[Item]) -> list[Pair[Item]]:
    count = min(len(before), len(after))
    pairs: list[Pair[Item]] = list(zip(before, after, strict=False))
    return pairs + [(None, item) for item in after[count:]] + [(item, None) for item in before[count:]]
