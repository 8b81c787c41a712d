"""Who outside a tree holds what it holds: the trees of a workload, and the host's other processes.

Rules: the host is searched once, and only when a rule has something to look for; the workload's ancestors and their
other children are searched first, as a descriptor is mostly handed down.
Source: proc_pid_fd(5).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress

from ckpt.host.inspection.holdings import Hold
from ckpt.host.preflight.facts import Facts
from ckpt.host.process_table import stat_of
from ckpt.units import Pid


def tree_of(facts: Facts, pid: Pid) -> Pid:
    """The root of the tree that a process of the workload belongs to."""
    return facts.once(_trees)[pid]


def holders(facts: Facts, target: str) -> frozenset[Pid]:
    """The processes of the workload that hold a descriptor of this target ("pipe:[12]")."""
    return facts.once(_holders).get(target, frozenset())


def trees_with(facts: Facts, target: str) -> frozenset[Pid]:
    """The roots of the trees that hold a descriptor of this target."""
    return frozenset(tree_of(facts, pid) for pid in holders(facts, target))


def outside(facts: Facts, target: str) -> tuple[Pid, ...]:
    """The processes of the host, without the workload's, that hold a descriptor of this target.

    Where one of its kin does, only those of its kin are told.
    """
    return shared_with_kin(facts, target) or _not_ours(facts, facts.once(_elsewhere).get(target, ()))


def shared_with_kin(facts: Facts, target: str) -> tuple[Pid, ...]:
    """As outside(), of the ancestors of the workload and their other children alone: cheap on a large host."""
    return _not_ours(facts, facts.once(_with_kin).get(target, ()))


def who(pids: tuple[Pid, ...]) -> str:
    """How a sentence calls processes that are not the workload's; "" for none."""
    if not pids:
        return ""
    stat = stat_of(pids[0])
    others = f" and {len(pids) - 1} more" if len(pids) > 1 else ""
    return f"process {pids[0]} ({stat.name if stat else '?'}){others}"


def _not_ours(facts: Facts, pids: tuple[Pid, ...]) -> tuple[Pid, ...]:
    """Without what the workload has started since it was read, and what has ended."""
    return tuple(pid for pid in pids if not _is_ours(facts, pid))


def _is_ours(facts: Facts, pid: Pid) -> bool:
    while (stat := stat_of(pid)) is not None and not stat.ended:
        if stat.parent in facts.pids:
            return True
        if stat.parent <= 1:
            return False
        pid = stat.parent
    return True


def _trees(facts: Facts) -> dict[Pid, Pid]:
    return {process.pid: tree.root for tree in facts.snapshot.trees for process in tree.processes}


def _holders(facts: Facts) -> dict[str, frozenset[Pid]]:
    found: dict[str, set[Pid]] = {}
    for task in facts.tasks:
        for hold in facts.descriptors(task):
            if not hold.is_file:
                found.setdefault(hold.target, set()).add(task.pid)
    return {target: frozenset(pids) for target, pids in found.items()}


def _elsewhere(facts: Facts) -> dict[str, tuple[Pid, ...]]:
    return _held_by(
        Pid(int(name))
        for name in os.listdir("/proc")
        if name.isdecimal() and Pid(int(name)) not in facts.pids
    )


def _with_kin(facts: Facts) -> dict[str, tuple[Pid, ...]]:
    kin: set[Pid] = set()
    for tree in facts.snapshot.trees:
        stat = stat_of(tree.root)
        while stat is not None and stat.parent > 0 and stat.parent not in kin:
            kin.add(stat.parent)
            # The init has whoever lost their parents, too.
            if stat.parent != 1:
                kin.update(_children(stat.parent))
            stat = stat_of(stat.parent)
    return _held_by(sorted(kin - facts.pids))


def _held_by(pids: Iterable[Pid]) -> dict[str, tuple[Pid, ...]]:
    found: dict[str, list[Pid]] = {}
    for pid in pids:
        for target in frozenset(_targets(pid)):
            found.setdefault(target, []).append(pid)
    return {target: tuple(holders) for target, holders in found.items()}


def _children(pid: Pid) -> Iterator[Pid]:
    with suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with suppress(OSError), open(f"/proc/{pid}/task/{thread}/children", encoding="ascii") as stream:
                yield from (Pid(int(word)) for word in stream.read().split())


def _targets(pid: Pid) -> Iterator[str]:
    with suppress(OSError):
        for fd in os.listdir(f"/proc/{pid}/fd"):
            with suppress(OSError):
                yield os.readlink(f"/proc/{pid}/fd/{fd}")


def is_pipe(hold: Hold) -> bool:
    """Whether it is one end of a pipe without a name."""
    return hold.target.startswith("pipe:[")
