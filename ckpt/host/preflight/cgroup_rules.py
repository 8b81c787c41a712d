"""Rules over the cgroups that a workload lives in: who is outside, who is frozen, what is too tight.

Rule: a limit counts only in a cgroup that holds nothing but the workload: there CRIU works during the restore, in
the cgroup that was made again with its limits.
Source: cgroups(7); Documentation/admin-guide/cgroup-v1/pids.rst and memory.rst, cgroup-v2.rst.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from ckpt.host import cgroups
from ckpt.host.cgroups import Hierarchy
from ckpt.host.inspection.processes import ProcessFacts
from ckpt.host.preflight.facts import Facts
from ckpt.host.preflight.rule import Found, Rule, When
from ckpt.host.process_table import stat_of
from ckpt.model.findings import Severity
from ckpt.units import Pid, human_bytes

_RESTORE_MEMORY: Final = 7 << 20
"""What CRIU takes beside the tasks: with 5.75 MiB the kernel killed it, with 7.75 MiB it did not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """A cgroup with processes of the workload in it."""

    hierarchy: Hierarchy
    directory: str
    pids: tuple[Pid, ...]

    @property
    def is_top(self) -> bool:
        """Whether it is the root of its hierarchy, where the whole host lives."""
        return self.directory == self.hierarchy.mountpoint


def _places(facts: Facts) -> tuple[_Place, ...]:
    """Where the workload's processes are, in every mounted hierarchy."""
    mounted = {each.name: each for each in cgroups.hierarchies()}
    found: dict[tuple[str, str], list[Pid]] = {}
    for task in facts.tasks:
        for name, path in cgroups.all_cgroups_of(task.pid).items():
            if name in mounted:
                found.setdefault((name, path.removesuffix(" (deleted)")), []).append(task.pid)
    return tuple(
        _Place(hierarchy=mounted[name], directory=mounted[name].directory(path), pids=tuple(pids))
        for (name, path), pids in found.items()
    )


def _outside(facts: Facts) -> Iterator[Found]:
    strays: dict[Pid, Pid] = {task.pid: parent for task, parent in facts.snapshot.strays}
    pids = facts.pids
    absent = {child: task.pid for task in facts.tasks for child in task.children if child not in pids}
    hierarchy = cgroups.hierarchy_of(facts.cgroup) if absent and facts.cgroup else None
    if hierarchy is not None:
        for child, parent in absent.items():
            place = cgroups.cgroup_of(child, hierarchy)
            # What was forked since the reading is in the cgroup, and no stray.
            if place is not None and not f"{place}/".startswith(f"{facts.cgroup}/"):
                strays[child] = parent
    for pid, parent in strays.items():
        stat = stat_of(pid)
        if stat is not None and not stat.ended:
            yield Found(
                pid=pid,
                subject=f"child of process {parent}",
                message=f"process {pid} ({stat.name}) is a child of process {parent} and lives outside the cgroup, so "
                "it would be dumped while it runs",
            )


def _left_behind(facts: Facts) -> Iterator[Found]:
    if facts.cgroup:
        return
    for place in facts.once(_places):
        roots = [tree.root for tree in facts.snapshot.trees if tree.root in place.pids]
        if place.is_top or place.hierarchy.name != cgroups.UNIFIED or not roots:
            continue
        first = min(stat.start_ticks for root in roots if (stat := stat_of(root)) is not None)
        with suppress(OSError):
            members = frozenset(cgroups.processes_in(place.directory))
            for pid in sorted(members - facts.pids):
                stat = stat_of(pid)
                # An orphan that is younger than the tree; a shell, and what it started before, is not left behind.
                if stat and not stat.ended and stat.parent not in members and stat.start_ticks >= first:
                    yield Found(
                        pid=pid,
                        subject=place.directory,
                        message=f"process {pid} ({stat.name}) lives in the same cgroup as process {roots[0]}, without "
                        "being its descendant: it is not in the checkpoint",
                        remedy=f"Checkpoint the cgroup: --cgroup {place.directory}.",
                    )


def _frozen(facts: Facts) -> Iterator[Found]:
    for place in facts.once(_places):
        if place.is_top:
            continue
        match place.hierarchy.version:
            case 2:
                # The workload's own one may be frozen by its operator: it is dumped, and left frozen.
                is_frozen = (
                    _is_frozen_above(place)
                    if place.directory == facts.cgroup
                    else "frozen 1" in cgroups.read_or_empty(place.directory, "cgroup.events")
                )
                how = f"echo 0 > {place.directory}/cgroup.freeze"
            case _:
                state = cgroups.read_or_empty(place.directory, "freezer.state")
                is_frozen = state.strip() in ("FROZEN", "FREEZING")
                how = f"echo THAWED > {place.directory}/freezer.state"
        if is_frozen:
            yield Found(
                pid=place.pids[0],
                subject=place.directory,
                message=f"{facts.snapshot.processes[place.pids[0]].label} lives in the cgroup {place.directory}, which "
                "is frozen",
                remedy=f"Thaw it, or the one above it that is frozen: {how}.",
            )


def _is_frozen_above(place: _Place) -> bool:
    directory = os.path.dirname(place.directory)
    while directory.startswith(place.hierarchy.mountpoint):
        if cgroups.read_or_empty(directory, "cgroup.freeze").strip() == "1":
            return True
        directory = os.path.dirname(directory)
    return False


def _few_pids(facts: Facts) -> Iterator[Found]:
    for place, limit, used in _limited(facts, "pids.max", "pids.max", "pids.current", "pids.current"):
        # CRIU runs there once for each tree, and needs a helper besides.
        needed = used + len(facts.snapshot.trees) + 1
        if needed > limit:
            yield _tight(
                facts,
                place,
                f"{place.directory} allows {limit} tasks, and {used} live there: a restore needs {needed}",
                f"Raise the limit before the dump: echo {needed} > {place.directory}/pids.max.",
            )


def _little_memory(facts: Facts) -> Iterator[Found]:
    names = ("memory.limit_in_bytes", "memory.max", "memory.usage_in_bytes", "memory.current")
    for place, limit, used in _limited(facts, *names):
        needed = used - _cached(place) + _RESTORE_MEMORY
        if needed > limit:
            name = names[place.hierarchy.version - 1]
            yield _tight(
                facts,
                place,
                f"{place.directory} allows {human_bytes(limit)} of memory, and {human_bytes(used)} are used: a restore "
                f"needs about {human_bytes(_RESTORE_MEMORY)} more",
                f"Raise the limit before the dump: {_raising(place, name, needed)}.",
            )


def _raising(place: _Place, name: str, size: int) -> str:
    # A limit of memory alone cannot be above that of memory with swap.
    with_swap = "memory.memsw.limit_in_bytes"
    names = [with_swap] if cgroups.read_or_empty(place.directory, with_swap) else []
    return "; ".join(f"echo {size} > {place.directory}/{each}" for each in (*names, name))


def _limited(
    facts: Facts, limit_v1: str, limit_v2: str, used_v1: str, used_v2: str
) -> Iterator[tuple[_Place, int, int]]:
    for place in facts.once(_places):
        limit_name, used_name = (limit_v1, used_v1) if place.hierarchy.version == 1 else (limit_v2, used_v2)
        limit = cgroups.read_or_empty(place.directory, limit_name).strip()
        used = cgroups.read_or_empty(place.directory, used_name).strip()
        if not place.is_top and limit.isdecimal() and used.isdecimal():
            with suppress(OSError):
                if facts.pids.issuperset(cgroups.processes_below(place.directory)):
                    yield place, int(limit), int(used)


def _cached(place: _Place) -> int:
    """The bytes of files that the kernel can drop when memory is short."""
    rows = (line.split() for line in cgroups.read_or_empty(place.directory, "memory.stat").splitlines())
    return sum(int(row[1]) for row in rows if row[0] in ("inactive_file", "active_file"))


def _tight(facts: Facts, place: _Place, message: str, remedy: str) -> Found:
    task: ProcessFacts = facts.snapshot.processes[place.pids[0]]
    return Found(pid=task.pid, subject=place.directory, message=message, remedy=remedy)


RULES: Final = (
    Rule(
        name="child-outside-cgroup",
        severity=Severity.BLOCKER,
        title="a child of the workload that lives outside its cgroup",
        effect="It would be dumped with its tree while it runs: the checkpoint would not be of one instant.",
        remedy="Move it into the cgroup, or dump the tree by --pid.",
        source="cgroups(7)",
        find=_outside,
        when=When.ALWAYS,
    ),
    Rule(
        name="left-behind",
        severity=Severity.WARNING,
        title="with --pid: a process of the same cgroup that the tree has left to be adopted by others (a daemon)",
        effect="It is not in the checkpoint, and runs on when the tree is stopped.",
        remedy="Checkpoint the cgroup.",
        source="proc_pid_stat(5), daemon(7); seen: a daemon of the tree stayed and ran on",
        find=_left_behind,
    ),
    Rule(
        name="frozen-cgroup",
        severity=Severity.BLOCKER,
        title="a cgroup of the workload that somebody else has frozen",
        effect="CRIU needs tasks that can be stopped one by one: the dump is refused, or waits in vain until its "
        "--freeze-timeout.",
        remedy="Thaw it.",
        source="cgroups(7); ckpt/host/freezer_control.py",
        find=_frozen,
        when=When.CHECK,
    ),
    Rule(
        name="pids-limit",
        severity=Severity.BLOCKER,
        title="a limit of tasks (pids.max) with no room for CRIU",
        effect='The dump works, and the restore fails ("Can\'t fork"): the cgroup is made again with its limit, and '
        "CRIU works in it.",
        remedy="Raise the limit before the dump.",
        source="cgroup-v2.rst, PID; seen: tasks + trees + 1 are needed, one less fails",
        find=_few_pids,
    ),
    Rule(
        name="memory-limit",
        severity=Severity.BLOCKER,
        title="a limit of memory with no room for CRIU",
        effect="The dump works, and the restore fails: the kernel kills CRIU or the tasks in the cgroup that was made "
        "again with its limit.",
        remedy="Raise the limit before the dump.",
        source="cgroup-v1/memory.rst, cgroup-v2.rst; seen with version 1: 5.75 MiB are too little, 7.75 MiB are enough",
        find=_little_memory,
    ),
)
