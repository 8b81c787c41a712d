"""Kill a CRIU that is at work on a frozen workload, so that the workload keeps its connections.

While CRIU reads connections, their sockets are in repair mode, a network lock keeps packets away, and the cgroup
is thawed under ptrace. CRIU takes all that back by itself in every case but one: SIGKILL.
Rules:
- First the cgroup is told to freeze, then CRIU is killed: its tasks stop where CRIU lets go of them, and none
  uses a socket in repair mode. Then the sockets are mended, then the lock is removed. Thawing is the caller's.
- Before that CRIU is stopped: it would lock connections between the look for its lock and its end.
- The tasks are in a cgroup whose path CRIU was given (freeze_cgroup), and survive that.
- The lock of a CRIU that has done its work stays where that was to end the tasks: the restore takes it away.
- Only the standard library and small modules are imported: the guardian holds this module in its memory.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final

from ckpt.host import cgroups
from ckpt.host.criu import netlock
from ckpt.host.freezer_control import control_of
from ckpt.host.network.namespace import inode_of, namespace_of
from ckpt.host.process_table import stat_of
from ckpt.host.tcp_repair import end_tcp_repair
from ckpt.units import Pid

_STOP_S: Final = 2.0
_LOOK_S: Final = 0.001
_STANDS: Final = frozenset("TtZX")
_FINISHED: Final = b"Dumping finished successfully"
"""Source: criu/cr-dump.c, cr_dump_finish()."""
_TAIL_BYTES: Final = 1 << 12


def kill_criu(
    kill: Callable[[], object], pid: Pid | None, *, log: str, frozen: Sequence[str]
) -> tuple[str, ...]:
    """Kill CRIU, or mend what one left that was killed; gives what was mended, in words.

    Args:
        kill: Returns when CRIU has ended.
        pid: CRIU, as this process sees it; None where it has ended.
        log: The path of CRIU's log, "" if it has none; there its run id is found.
        frozen: The cgroups that are frozen for its dump; where connections were locked, they are so afterwards.

    Raises:
        OsRefused: the network lock cannot be removed.
    """
    if log and pid is not None:
        _stop(pid)
    run_id = netlock.run_id_in(Path(log)) if log else ""
    if not run_id:
        kill()
        return ()
    table = netlock.table_of(run_id)
    with ExitStack() as opened:
        try:
            locked = [each for each in _namespaces(frozen, opened) if table in netlock.list_tables(each)]
        except BaseException:
            if pid is not None:  # nobody ends it now: it shall come to its own end
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)
            raise
        if not locked:
            kill()
            return ()
        for cgroup in frozen:
            control = control_of(cgroup)
            if control is not None:
                control.hold()
        kill()
        tasks = [pid for cgroup in frozen for pid in cgroups.processes_below(cgroup)]
        if not tasks and _has_finished(log):
            return ()
        end_tcp_repair(tasks)
        removed = [netlock.remove_table(table, each) for each in locked]
    return ("mended its connections", *((f"removed the network lock {table}",) if any(removed) else ()))


def _stop(pid: Pid) -> None:
    """Have it do nothing any more, but be killed; one that the kernel keeps busy is not waited for long."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)
    deadline = time.monotonic() + _STOP_S
    while time.monotonic() < deadline:
        seen = stat_of(pid)
        if seen is None or seen.state in _STANDS:
            return
        time.sleep(_LOOK_S)


def _has_finished(log: str) -> bool:
    """Whether CRIU says that it was through with its dump."""
    with suppress(OSError), open(log, "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL_BYTES))
        return _FINISHED in file.read(_TAIL_BYTES)
    return False


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
