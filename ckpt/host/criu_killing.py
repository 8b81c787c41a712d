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

from collections.abc import Callable, Sequence
from pathlib import Path

from ckpt.host import cgroups
from ckpt.host.criu import netlock
from ckpt.host.freezer_control import control_of
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
    locked = bool(run_id) and netlock.table_of(run_id) in netlock.list_tables()
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
    table = netlock.table_of(run_id)
    removed = (f"removed the network lock {table}",) if netlock.remove_table(table) else ()
    return ("mended its connections", *removed)
