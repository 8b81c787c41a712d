"""Bring a workload without a cgroup of its own into one of ours, and put every process back.

The cgroup is made *below* the one that holds the processes now: its limits go on applying to them, and as a
leaf without controllers of its own it is allowed wherever processes are.

Rules:
- Where a process came from is noted, durably, before it is moved.
- A process that was once seen to belong to the tree stays part of it, also when its parent ends.
- What was born inside goes back to where its parent came from.
Source: Documentation/admin-guide/cgroup-v2.rst, "Organizing Processes and Threads", "No Internal Process
Constraint", "Threads"; decisions/0005.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final

from ckpt.errors import CannotCheckpoint, FeatureMissing, OsRefused
from ckpt.host import cgroups
from ckpt.host.journal import Gathered, Origin
from ckpt.host.process_table import ProcessStat, all_processes, stat_of
from ckpt.units import Pid

CGROUP_PREFIX: Final = "ckpt-"
ROUNDS_MAX: Final = 1000
"""A tree that forks faster than it can be gathered would never be whole."""

_TRANSIENT = re.compile(re.escape(CGROUP_PREFIX) + r"[0-9a-f]{12}-(\d+)-(\d+)")

Members = Callable[[Mapping[Pid, ProcessStat], set[Pid]], set[Pid]]
"""The workload's processes now, from all processes and those that belonged to it before."""


class Gathering:
    """One cgroup of ours, and the processes that were brought there."""

    def __init__(
        self, *, subject: str, operation_id: str, members: Members, note: Callable[[Gathered], None]
    ) -> None:
        """Prepare to gather `members` into a cgroup named after the operation; nothing is changed yet.

        Raises:
            CannotCheckpoint: a process lives in a threaded cgroup.
            FeatureMissing: this host has neither version 2 nor the version-1 freezer.
        """
        self._members = members
        self._note = note
        self._origins: dict[Pid, Origin] = {}
        self._hierarchy = cgroups.unified() or cgroups.freezer_v1()
        if self._hierarchy is None:
            raise FeatureMissing(
                feature="a cgroup freezer", remedy="Mount cgroup2, or the version-1 freezer hierarchy."
            )
        places = {place for place, _ in self._places(members(all_processes(), set()))}
        _refuse_threaded(subject, places)
        self._home = cgroups.common_ancestor(places) if places else self._hierarchy.mountpoint
        if cgroups.read_or_empty(self._home, "cgroup.type") not in ("", "domain"):
            # Below a threaded domain a new cgroup would be "domain invalid" and take no process.
            self._home = self._hierarchy.mountpoint
        self.cgroup: Final = f"{self._home.rstrip('/')}/{CGROUP_PREFIX}{operation_id}"

    def gather(self) -> None:
        """Bring all processes in; again, those that were forked outside meanwhile.

        Raises:
            OsRefused: the kernel refused a move.
        """
        for _round in range(ROUNDS_MAX):
            outside = self._outside()
            if not outside:
                return
            self._origins |= {origin.pid: origin for origin in outside}
            self._note(self.step)
            with _as_refused("make the cgroup", self.cgroup):
                cgroups.make(self.cgroup)
            for origin in outside:
                with _as_refused(f"move process {origin.pid} into", self.cgroup):
                    cgroups.add_process(self.cgroup, origin.pid)
        raise OsRefused(
            operation="gather", subject=f"the processes in {self.cgroup}", reason="they fork faster than that"
        )

    @property
    def step(self) -> Gathered:
        """What was done so far, for the journal."""
        return Gathered(cgroup=self.cgroup, home=self._home, origins=tuple(self._origins.values()))

    def _outside(self) -> list[Origin]:
        table = all_processes()
        known = {pid for pid, origin in self._origins.items() if _still(origin, table)}
        found: list[Origin] = []
        for place, pid in self._places(self._members(table, known)):
            if place != self.cgroup and not place.startswith(self.cgroup + "/"):
                known_origin = self._origins.get(pid) if pid in known else None
                found.append(
                    known_origin or Origin(pid=pid, start_ticks=table[pid].start_ticks, cgroup=place)
                )
        return found

    def _places(self, pids: Iterable[Pid]) -> Iterator[tuple[str, Pid]]:
        assert self._hierarchy is not None  # __init__ has seen to it
        for pid in sorted(pids):
            place = cgroups.cgroup_of(pid, self._hierarchy)
            # In this order: a zombie cannot be moved, and /proc shows it in the root cgroup.
            stat = stat_of(pid)
            if place is not None and stat is not None and not stat.ended:
                yield place, pid


def is_transient(cgroup: str) -> bool:
    """Whether ckpt made this cgroup, for the time of one operation."""
    return _TRANSIENT.fullmatch(os.path.basename(cgroup)) is not None


def put_back(step: Gathered) -> None:
    """Put every process back where it came from and remove the cgroup; safe to repeat.

    A cgroup that was removed meanwhile is replaced by the nearest one above it that is there.

    Raises:
        OsRefused: the kernel refused a move; the others were moved, and the cgroup stays.
    """
    origins = {origin.pid: origin for origin in step.origins}
    refused: OsRefused | None = None
    for _round in range(ROUNDS_MAX):
        inside = cgroups.processes_below(step.cgroup)
        if not inside:
            if cgroups.remove(step.cgroup):
                return
            time.sleep(0.001)  # a task that is just ending; the kernel tells nobody when it is through
        refused = None
        table = all_processes()
        for pid in inside:
            place = _existing(_origin_of(pid, origins, table) or step.home)
            try:
                with _as_refused(f"move process {pid} back into", place):
                    cgroups.add_process(place, pid)
            except OsRefused as error:
                refused = error
        if refused is not None:
            raise refused
    raise OsRefused(operation="empty", subject=step.cgroup, reason="its processes fork faster than that")


def _origin_of(pid: Pid, origins: Mapping[Pid, Origin], table: Mapping[Pid, ProcessStat]) -> str | None:
    """Where the process, or its nearest ancestor of which that is known, came from."""
    seen: set[Pid] = set()
    while pid in table and pid not in seen:
        seen.add(pid)
        origin = origins.get(pid)
        if origin is not None and _still(origin, table):
            return origin.cgroup
        pid = table[pid].parent
    return None


def _still(origin: Origin, table: Mapping[Pid, ProcessStat]) -> bool:
    return origin.pid in table and table[origin.pid].start_ticks == origin.start_ticks


def _existing(cgroup: str) -> str:
    while not os.path.exists(cgroup + "/cgroup.procs") and len(cgroup) > 1:
        cgroup = os.path.dirname(cgroup)
    return cgroup


def _refuse_threaded(subject: str, places: set[str]) -> None:
    threaded = sorted(each for each in places if cgroups.read_or_empty(each, "cgroup.type") == "threaded")
    if threaded:
        # Moving the process would bring its threads together, and nothing would spread them out again.
        raise CannotCheckpoint(
            target=subject,
            reasons=tuple(f"its threads live in the threaded cgroup {each}" for each in threaded),
            remedy="Checkpoint the whole domain cgroup above it, with --cgroup.",
        )


@contextlib.contextmanager
def _as_refused(operation: str, subject: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OsRefused(operation=operation, subject=subject, reason=error.strerror or str(error)) from error
