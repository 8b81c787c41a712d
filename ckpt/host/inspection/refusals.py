"""What would make the dump fail, or worse: make it succeed and the restore fail, when the workload is gone.

Rule: each finding names the process and the thing, and every finding is told, not only the first.
Source: what each does was seen with CRIU 4.2.1; criu/files-ext.c, criu/proc_parse.c, criu/namespaces.c.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

from ckpt.host.inspection.holdings import Holdings
from ckpt.host.inspection.processes import ProcessFacts
from ckpt.host.inspection.snapshot import Snapshot
from ckpt.host.mounts import mounts_of
from ckpt.host.process_table import stat_of
from ckpt.model.inodes import RoleKind
from ckpt.model.workload import Tree
from ckpt.units import Pid

_DUMPABLE_ANONYMOUS: Final = frozenset(
    ("eventfd", "eventpoll", "signalfd", "timerfd", "inotify", "fanotify", "pidfd", "[fanotify]")
)
_CAP_SYS_RESOURCE: Final = 1 << 24
_TCP_LISTEN, _TCP_CLOSE = "0A", "07"
_NOT_NESTED: Final = ("pid", "user", "ipc", "uts", "mnt", "net", "time")


def reasons_against(snapshot: Snapshot, *, tcp_established: bool) -> tuple[str, ...]:
    """Everything that speaks against a dump of what was read, a sentence each."""
    return tuple(dict.fromkeys(_reasons(snapshot, tcp_established=tcp_established)))


def _reasons(snapshot: Snapshot, *, tcp_established: bool) -> Iterator[str]:
    unlimited = _we_may_read_limits()
    own_ipc = os.stat("/proc/self/ns/ipc").st_ino
    for pid, facts in snapshot.processes.items():
        if facts.ended:
            if len(facts.process.threads) > 1:
                yield f"{facts.label} has ended, and its other threads run on, which CRIU cannot dump"
            continue
        yield from _about_process(facts, unlimited=unlimited)
        yield from _about_holdings(facts, snapshot.holdings[pid], own_ipc)
    for facts, parent in snapshot.strays:
        yield (
            f"{facts.label} is a child of process {parent} and lives outside the cgroup, so it would be dumped "
            "while it runs: move it into the cgroup, or dump the tree by --pid"
        )
    for tree in snapshot.trees:
        yield from _about_namespaces(tree, snapshot)
    if not tcp_established:
        yield from _about_connections(snapshot)


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


def _about_holdings(facts: ProcessFacts, holdings: Holdings, own_ipc: int) -> Iterator[str]:
    for hold in holdings.holds:
        if hold.kind is RoleKind.FD and hold.target.startswith("anon_inode:"):
            name = hold.target.partition(":")[2]
            if name.strip("[]") not in _DUMPABLE_ANONYMOUS:
                fd = hold.detail.partition(" ")[0]
                yield f"{facts.label} holds fd {fd} → {hold.target}{_advice(name)}"
    for path in holdings.special_maps:
        if path.startswith("/SYSV"):
            if facts.namespaces["ipc"] == own_ipc:
                yield (
                    f"{facts.label} maps SysV shared memory ({path.partition(' ')[0]}) of the host: "
                    "start it as a job ('ckpt run'), which has an IPC namespace of its own"
                )
        else:
            yield f"{facts.label} maps {path.partition(' ')[0]}{_advice(path)}"


def _advice(name: str) -> str:
    if "io_uring" in name:
        return ": run it without io_uring (for libuv, UV_USE_IO_URING=0)"
    return ", which CRIU cannot dump"


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


def _about_connections(snapshot: Snapshot) -> Iterator[str]:
    """Established TCP connections of the workload."""
    sockets: dict[str, tuple[ProcessFacts, str]] = {}
    for pid, holdings in snapshot.holdings.items():
        for hold in holdings.holds:
            if hold.target.startswith("socket:["):
                fd = hold.detail.partition(" ")[0]
                sockets.setdefault(hold.target[8:-1], (snapshot.processes[pid], fd))
    if not sockets:
        return
    namespaces = {
        facts.namespaces["net"]: pid for pid, facts in snapshot.processes.items() if not facts.ended
    }
    for pid in namespaces.values():
        for table in ("tcp", "tcp6"):
            with suppress(OSError), open(f"/proc/{pid}/net/{table}", encoding="ascii") as stream:
                next(stream, None)
                for line in stream:
                    fields = line.split()
                    if fields[3] not in (_TCP_LISTEN, _TCP_CLOSE) and fields[9] in sockets:
                        facts, fd = sockets[fields[9]]
                        yield (
                            f"{facts.label} holds fd {fd}, an open TCP connection: give --tcp-established, "
                            "which freezes the connection with it, or let it be closed first"
                        )


def _we_may_read_limits() -> bool:
    with open("/proc/self/status", encoding="utf-8", errors="replace") as stream:
        for line in stream:
            if line.startswith("CapEff:"):
                return bool(int(line.split()[1], 16) & _CAP_SYS_RESOURCE)
    return False
