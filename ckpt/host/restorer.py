"""CRIU as the port `Restorer`: what must be true on this host before trees can be brought back.

Source: decisions/0004. The restore itself is in restore_session.py.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection
from pathlib import Path
from typing import Final

from ckpt.host import carried
from ckpt.host.jobs import JobRegistry
from ckpt.host.operations import JournaledOperation
from ckpt.host.outside import NOTHING_JOINED, Joined
from ckpt.host.pace import read_pace
from ckpt.host.process_table import stat_of, thread_group_of
from ckpt.host.restore_session import CriuRestoreSession, Place
from ckpt.model.checkpoint import CarriedFile
from ckpt.model.network import Network
from ckpt.model.workload import CgroupRecord, Tree
from ckpt.units import SECOND, ByteCount, JobName, Nanoseconds, Pid

ZOMBIE_PATIENCE: Final = Nanoseconds(5 * SECOND)
"""How long a killed task's pid is waited for: it is free only when its parent has reaped it (1.8 s was seen)."""

_LOOK_AGAIN_S: Final = 0.01


class CriuRestorer:
    """Brings trees back with CRIU. Fits the port `Restorer`."""

    def __init__(self, criu: Path, jobs: JobRegistry, joined: Joined = NOTHING_JOINED) -> None:
        """Use the CRIU at this path, file what is restored in this registry, and give it what is joined."""
        self._criu = criu
        self._jobs = jobs
        self._joined = joined

    def pace(self) -> ByteCount:
        """How many bytes of images this host restores in a second, by its last large restore."""
        return read_pace(self._jobs.state)

    def check_pids(self, trees: tuple[Tree, ...]) -> tuple[str, ...]:
        """A sentence for every pid that is needed and taken, with the name of the process that has it.

        Trees that have a PID namespace of their own bring their pids along. What was just killed still has
        its pid until its parent has reaped it: that is waited for.
        """
        needed = [
            thread
            for tree in trees
            if not tree.owns("pid")
            for process in tree.processes
            for thread in process.threads
        ]
        return tuple(sentence for _, sentence in taken_pids(needed))

    def session(
        self,
        *,
        job: JobName,
        cgroup: str,
        cgroups: tuple[CgroupRecord, ...],
        new_pids: bool,
        trees: tuple[Tree, ...],
        held: frozenset[str],
        networks: tuple[Network, ...],
        pages_from: str = "",
        operation: object,
    ) -> CriuRestoreSession:
        """Prepare the cgroups and the process that will be the parent of what is restored.

        Args:
            job: The name that it will be filed under.
            cgroup: An absolute path, or "" for one of our own that is named after the job.
            cgroups: The recorded cgroups.
            new_pids: Give the trees a PID namespace of their own.
            trees: All that will be restored.
            held: The paths of the files that they hold.
            networks: Those of their own.
            pages_from: The socket of who brings the pages that the images lack, or that may come later; "" for nobody.
            operation: One that JournaledOperations began (an `object`, as a port's adapter must take any).

        Raises:
            WrongState: the job runs, or the cgroup holds processes or is frozen.
            FeatureMissing, CommandFailed: a network cannot be made here.
        """
        if not isinstance(operation, JournaledOperation):
            raise TypeError(operation)
        place = Place(
            job=job,
            cgroup=cgroup,
            records=cgroups,
            new_pids=new_pids,
            trees=trees,
            held=held,
            networks=networks,
            pages_from=pages_from,
            joined=self._joined,
        )
        return CriuRestoreSession(self._criu, self._jobs, operation, place)

    def put_back(self, files: tuple[tuple[CarriedFile, str], ...]) -> carried.PutBack:
        """Put carried files, whose contents lie at the given paths, where the restore needs them."""
        return carried.put_back(files)


def taken_pids(needed: Collection[Pid]) -> tuple[tuple[Pid, str], ...]:
    """Those of the pids that somebody has, each with a sentence about whom; zombies are waited for."""
    patience_ends = time.monotonic_ns() + ZOMBIE_PATIENCE
    while True:
        # A zombie's pidfd is readable at once; nothing tells of its reaping. So this looks again.
        taken = [pid for pid in needed if os.path.exists(f"/proc/{pid}")]
        waiting = [pid for pid in taken if (stat := stat_of(pid)) is None or stat.ended]
        if not waiting or time.monotonic_ns() > patience_ends:
            return tuple((pid, sentence) for pid in taken if (sentence := _who_has(pid)))
        time.sleep(_LOOK_AGAIN_S)


def _who_has(pid: Pid) -> str:
    """Who has this pid, in a sentence; "" if it became free."""
    leader = thread_group_of(pid)
    stat = stat_of(leader if leader is not None else pid)
    if stat is None:
        return ""
    if stat.pid != pid:
        return f"pid {pid} belongs to a thread of {stat.name} (process {stat.pid})"
    if stat.ended:
        return (
            f"pid {pid} belongs to {stat.name}, which has ended and waits for process {stat.parent} to notice"
        )
    return f"pid {pid} belongs to {stat.name}"
