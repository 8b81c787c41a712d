"""Kill a CRIU that is at work on a frozen workload, so that the workload keeps its connections.

While CRIU reads connections, their sockets are in repair mode, a network lock keeps packets away, and the cgroup
is thawed under ptrace. CRIU takes all that back by itself in every case but one: SIGKILL.
Rules:
- First the cgroup is told to freeze, then CRIU is killed: its tasks stop where CRIU lets go of them, and none
  uses a socket in repair mode. Then the sockets are mended, then the lock is removed. Thawing is the caller's.
- The tasks are in a cgroup whose path CRIU was given (freeze_cgroup), and survive that.
- Only the standard library and small modules are imported: the guardian holds this module in its memory.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from ckpt.host import cgroups
from ckpt.host.criu import netlock
from ckpt.host.freezer_control import control_of
from ckpt.host.network.namespace import inode_of, namespace_of
from ckpt.host.tcp_repair import end_tcp_repair


def kill_criu(kill: Callable[[], object], *, log: str, frozen: Sequence[str]) -> tuple[str, ...]:
    """Kill CRIU, or mend what one left that was killed; gives what was mended, in words.

    Args:
        kill: Returns when CRIU has ended.
        log: The path of CRIU's log, "" if it has none; there its run id is found.
        frozen: The cgroups that are frozen for its dump; where connections were locked, they are so afterwards.

    Raises:
        OsRefused: the network lock cannot be removed.
    """
    run_id = netlock.run_id_in(Path(log)) if log else ""
    if not run_id:
        kill()
        return ()
    table = netlock.table_of(run_id)
    with ExitStack() as opened:
        locked = [each for each in _namespaces(frozen, opened) if table in netlock.list_tables(each)]
        if not locked:
            kill()
            return ()
        for cgroup in frozen:
            control = control_of(cgroup)
            if control is not None:
                control.hold()
        kill()
        for cgroup in frozen:
            end_tcp_repair(cgroups.processes_below(cgroup))
        removed = [netlock.remove_table(table, each) for each in locked]
    return ("mended its connections", *((f"removed the network lock {table}",) if any(removed) else ()))


def _namespaces(frozen: Sequence[str], opened: ExitStack) -> list[int | None]:
    """Where CRIU's lock may be: here (None), or in a network namespace of the workload's own, as descriptors."""
    found: dict[int, int | None] = {os.stat("/proc/self/ns/net").st_ino: None}
    for pid in (pid for cgroup in frozen for pid in cgroups.processes_below(cgroup)):
        with suppress(OSError):
            if os.stat(f"/proc/{pid}/ns/net").st_ino not in found:
                namespace = namespace_of(pid)
                opened.callback(os.close, namespace)
                found[inode_of(namespace)] = namespace
    return list(found.values())
