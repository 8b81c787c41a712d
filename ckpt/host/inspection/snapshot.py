"""All processes of a workload and what they hold, at one moment.

Rules:
- A root is a process whose parent is not in the workload; parents come before their children, and trees in the
  order of their roots' pids.
- A zombie belongs to the tree of the parent that has not reaped it: cgroup.procs leaves it out, CRIU does not.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from ckpt.host import cgroups
from ckpt.host.inodes.fuse.living import is_in_view
from ckpt.host.inspection.holdings import Holdings, read_holdings
from ckpt.host.inspection.processes import ProcessFacts, read_process
from ckpt.host.process_table import all_processes, descendants
from ckpt.host.timens import offsets_of
from ckpt.model.clocks import TimeOffsets
from ckpt.model.target import Target
from ckpt.model.workload import Namespace, Tree
from ckpt.units import Nanoseconds, Pid


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """What was read, and the trees that it makes.

    `strays` are children of the workload that live outside its cgroup, each with its parent; they are only
    looked for where an earlier reading is given, as only a frozen workload's children are known for sure.
    """

    processes: dict[Pid, ProcessFacts]
    holdings: dict[Pid, Holdings]
    trees: tuple[Tree, ...]
    strays: tuple[tuple[ProcessFacts, Pid], ...]


def members_of(target: Target) -> list[Pid]:
    """The processes of a target that still runs."""
    if target.cgroup:
        return cgroups.processes_below(target.cgroup)
    return sorted(descendants(target.roots, all_processes()))


def take(pids: Collection[Pid], cgroup: str, earlier: Snapshot | None) -> Snapshot:
    """Read these processes.

    Args:
        pids: As this host sees them; those that have ended are left out.
        cgroup: The directory of the workload's cgroup, "" for none of its own.
        earlier: An earlier reading of the same workload, which spares work.
    """
    controllers, place = _as_proc_shows(cgroup)
    processes: dict[Pid, ProcessFacts] = {}
    strays: list[tuple[ProcessFacts, Pid]] = []
    for pid in pids:
        facts = read_process(pid, controllers, place)
        if facts is not None:
            processes[pid] = facts
    for parent in list(processes.values()):
        for pid in parent.children:
            facts = None if pid in processes else read_process(pid, controllers, place)
            if facts is not None and facts.ended:
                processes[pid] = facts
            elif facts is not None and earlier is not None:
                strays.append((facts, parent.pid))
    holdings = {pid: read_holdings(pid, earlier.holdings.get(pid) if earlier else None) for pid in processes}
    return Snapshot(processes=processes, holdings=holdings, trees=_trees(processes), strays=tuple(strays))


def host_namespaces() -> dict[str, int]:
    """The namespaces that this process lives in: the host's, as the manifest calls it."""
    facts = read_process(Pid(_own_pid()), "", "")
    assert facts
    return facts.namespaces


def _own_pid() -> int:
    with open("/proc/self/stat", "rb") as stream:
        return int(stream.read().split(b" ", 1)[0])


def _as_proc_shows(cgroup: str) -> tuple[str, str]:
    hierarchy = cgroups.hierarchy_of(cgroup) if cgroup else None
    if hierarchy is None:
        return "", "/"
    name = "" if hierarchy.name == cgroups.UNIFIED else hierarchy.name
    return name, hierarchy.relative(cgroup)


def _trees(processes: dict[Pid, ProcessFacts]) -> tuple[Tree, ...]:
    children: dict[Pid, list[Pid]] = {}
    for pid in sorted(processes):
        children.setdefault(processes[pid].process.parent, []).append(pid)
    roots = sorted(pid for pid, facts in processes.items() if facts.process.parent not in processes)
    host = host_namespaces() if roots else {}
    own = offsets_of("self")
    return tuple(_tree(root, processes, children, host, own) for root in roots)


def _tree(
    root: Pid,
    processes: dict[Pid, ProcessFacts],
    children: dict[Pid, list[Pid]],
    host: dict[str, int],
    own: TimeOffsets,
) -> Tree:
    order = [root]
    for pid in order:  # grows while it is walked: parents come first
        order += children.get(pid, ())
    offsets = offsets_of(str(root))
    return Tree(
        root=root,
        processes=tuple(processes[pid].process for pid in order),
        namespaces=tuple(
            Namespace(
                kind=kind,
                inode=inode,
                # The namespace that shows files under their old numbers is the host's in all else.
                own=inode != host[kind] and not (kind == "mnt" and is_in_view(root)),
            )
            for kind, inode in processes[root].namespaces.items()
        ),
        time_offsets=TimeOffsets(
            monotonic_ns=Nanoseconds(offsets.monotonic_ns - own.monotonic_ns),
            boottime_ns=Nanoseconds(offsets.boottime_ns - own.boottime_ns),
        ),
    )
