"""What would make the dump fail, or worse: make it succeed and the restore fail, when the workload is gone.

Rules:
- Each finding names the process and the thing, and every finding is told, not only the first.
- Only what is certain stands here: what a dump survives is never refused, and what CRIU refuses with an option
  to allow it is left to CRIU.
- Before the freeze everything is asked that lasts. Under it what costs no further system call is asked again,
  and what is true for a moment only.
Source: what each does was seen with CRIU 4.2.1 (tests/system/test_refusals.py compares them); criu/files-ext.c,
criu/proc_parse.c, criu/namespaces.c.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from ckpt.host.inspection import refused_files, refused_sockets
from ckpt.host.inspection.holdings import Holdings
from ckpt.host.inspection.processes import ProcessFacts
from ckpt.host.inspection.snapshot import Snapshot
from ckpt.host.mounts import mounts_of
from ckpt.host.process_table import stat_of
from ckpt.model.workload import Tree
from ckpt.units import Pid

_CAP_SYS_RESOURCE: Final = 1 << 24
_NOT_NESTED: Final = ("cgroup", "pid", "user", "ipc", "uts", "mnt", "net", "time")
_VFORK_WAITS_IN: Final = frozenset(("kernel_clone", "wait_for_vfork_done"))


@dataclass(frozen=True, slots=True, kw_only=True)
class AtFreeze:
    """What was found: what lasts, and what is over as soon as the workload goes on for a moment."""

    lasting: tuple[str, ...]
    passing: tuple[str, ...]


def lasting_reasons(snapshot: Snapshot) -> tuple[str, ...]:
    """What speaks against a dump of what was read while it runs, and will not pass by itself."""
    return tuple(dict.fromkeys([*_reasons(snapshot), *_costly_reasons(snapshot)]))


def reasons_at_freeze(snapshot: Snapshot, *, tcp_established: bool) -> AtFreeze:
    """What speaks against a dump of what was read under the freeze.

    Args:
        snapshot: What was read.
        tcp_established: Whether open TCP connections are dumped with it.
    """
    sockets = refused_sockets.tcp_sockets(snapshot)
    connections = () if tcp_established else refused_sockets.about_connections(sockets)
    return AtFreeze(
        lasting=tuple(dict.fromkeys([*_reasons(snapshot), *connections])),
        passing=tuple(dict.fromkeys([*refused_sockets.about_backlogs(sockets), *_about_vfork(snapshot)])),
    )


def _reasons(snapshot: Snapshot) -> Iterator[str]:
    unlimited = _we_may_read_limits()
    own_ipc = os.stat("/proc/self/ns/ipc").st_ino
    for pid, facts in snapshot.processes.items():
        if facts.ended:
            if len(facts.process.threads) > 1:
                yield f"{facts.label} has ended, and its other threads run on, which CRIU cannot dump"
            continue
        yield from _about_process(facts, unlimited=unlimited)
        yield from refused_files.about_descriptors(facts, snapshot.holdings[pid])
        yield from _about_maps(facts, snapshot.holdings[pid], own_ipc)
    for facts, parent in snapshot.strays:
        yield (
            f"{facts.label} is a child of process {parent} and lives outside the cgroup, so it would be dumped "
            "while it runs: move it into the cgroup, or dump the tree by --pid"
        )
    for tree in snapshot.trees:
        yield from _about_namespaces(tree, snapshot)


def _costly_reasons(snapshot: Snapshot) -> Iterator[str]:
    for tree in snapshot.trees:
        yield from refused_files.about_mounts(tree, snapshot)
    yield from refused_sockets.about_protocols(snapshot)


def _about_process(facts: ProcessFacts, *, unlimited: bool) -> Iterator[str]:
    if facts.tracer:
        tracer = stat_of(facts.tracer)
        name = tracer.name if tracer else "?"
        yield f"{facts.label} is traced by process {facts.tracer} ({name}): detach it"
    if (facts.process.uid or facts.process.gid) and not unlimited:
        yield (
            f"{facts.label} runs as uid {facts.process.uid}, and without CAP_SYS_RESOURCE its limits "
            "cannot be read: give ckpt that capability, or run the workload as root"
        )
    if facts.executable.startswith("/memfd:"):
        yield f"{facts.label} runs a program from a memfd, which a restore cannot bring back"
    if facts.deadline:
        yield f"{facts.label} is scheduled with SCHED_DEADLINE, which a restore cannot bring back"


def _about_maps(facts: ProcessFacts, holdings: Holdings, own_ipc: int) -> Iterator[str]:
    for path in holdings.special_maps:
        if path.startswith("/SYSV"):
            if facts.namespaces["ipc"] == own_ipc:
                yield (
                    f"{facts.label} maps SysV shared memory ({path.partition(' ')[0]}) of the host: "
                    "start it as a job ('ckpt run'), which has an IPC namespace of its own"
                )
        else:
            yield f"{facts.label} maps {path.removesuffix(' (deleted)')}{refused_files.advice(path)}"


def _about_namespaces(tree: Tree, snapshot: Snapshot) -> Iterator[str]:
    root = snapshot.processes[tree.root]
    for process in tree.processes[1:]:
        facts = snapshot.processes[process.pid]
        for kind in () if facts.ended or root.ended else _NOT_NESTED:
            if facts.namespaces[kind] != root.namespaces[kind]:
                yield f"{facts.label} lives in another {kind} namespace than its tree's root, {root.label}"
    if tree.owns("user") and not (tree.owns("pid") and tree.owns("mnt")):
        yield (
            f"{root.label} has a user namespace without a PID and a mount namespace of its own, "
            "which a restore cannot bring back"
        )
    if tree.owns("mnt") and not _root_is_the_hosts(tree.root):
        yield (
            f"{root.label} has another root directory in a mount namespace of its own (a container): "
            "dump it with the tool that made it"
        )
    if tree.owns("pid") and root.process.pid_inside != 1:
        yield f"{root.label} is not the init of its PID namespace, whose other processes stand outside"


def _root_is_the_hosts(pid: Pid) -> bool:
    def root(of: Pid | str) -> tuple[str, str] | None:
        found = [mount for mount in mounts_of(of) if mount.mountpoint == "/"]
        return (found[-1].device, found[-1].root) if found else None

    with suppress(OSError):
        return root(pid) == root("self")
    return True


def _about_vfork(snapshot: Snapshot) -> Iterator[str]:
    """Parents that wait for a child of vfork(2): the kernel counts them as frozen, but CRIU cannot stop them.

    CRIU would try for ten seconds, with the workload frozen.
    """
    for pid, facts in snapshot.processes.items():
        # Until it calls execve(2) the child lives in its parent's memory.
        maps = snapshot.holdings[pid].maps_text
        children = [child for child in facts.children if child in snapshot.processes]
        if maps and any(snapshot.holdings[child].maps_text == maps for child in children):
            for thread in facts.process.threads:
                if _wait_of(thread) in _VFORK_WAITS_IN:
                    yield f"{facts.label} is just starting a program (thread {thread})"


def _wait_of(thread: Pid) -> str:
    with suppress(OSError), open(f"/proc/{thread}/wchan", encoding="ascii", errors="replace") as stream:
        return stream.read()
    return ""


def _we_may_read_limits() -> bool:
    with open("/proc/self/status", encoding="utf-8", errors="replace") as stream:
        for line in stream:
            if line.startswith("CapEff:"):
                return bool(int(line.split()[1], 16) & _CAP_SYS_RESOURCE)
    return False
