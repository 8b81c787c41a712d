"""Wait for memory pressure in several cgroups at once. Fits the ports `Pressures` and `Pressure`.

Rules:
- All waiting is on descriptors; a timeout is only there for what the kernel does not tell.
- One guard a cgroup.
- While it guards, what it has set stands in the journal of an operation, with a guardian: a guard that is killed leaves
  no cgroup in which tasks wait for ever for somebody who would have come.
"""

from __future__ import annotations

import hashlib
import os
import select
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from ckpt.errors import Interrupted
from ckpt.host.guard.arms import Arm
from ckpt.host.locks import exclusive
from ckpt.host.operations import JournaledOperations
from ckpt.model.guarding import Event, Policy, Watched
from ckpt.units import Nanoseconds


class HostPressure:
    """What the kernel tells of some cgroups. Fits the port `Pressure`."""

    def __init__(self, arms: list[Arm], stopping: Callable[[], bool]) -> None:
        self._arms = arms
        self._stopping = stopping

    def wait(self, timeout: Nanoseconds) -> dict[str, frozenset[Event]]:
        """What came, by watched cgroup; after `timeout` at the latest, and also when a limit was changed.

        Raises:
            Interrupted: somebody asked the guard to end.
        """
        if self._stopping():
            raise Interrupted(operation="ckpt guard")
        poll = select.poll()
        owners: dict[int, Arm] = {}
        is_new = False
        for arm in self._arms:
            is_new = arm.refresh() or is_new
            for fd, events in arm.descriptors.items():
                poll.register(fd, events)
                owners[fd] = arm
        found: dict[str, set[Event]] = {}
        # Armed just now: what happened before was not told.
        for fd, events in poll.poll(0 if is_new else timeout / 1e6):
            event = owners[fd].hear(fd, events)
            if event is not None:
                found.setdefault(owners[fd].watched.cgroup, set()).add(event)
        return {cgroup: frozenset(events) for cgroup, events in found.items()}


class HostPressures:
    """Opens what tells of pressure on this host. Fits the port `Pressures`."""

    def __init__(
        self, state: str, formers: dict[tuple[str, str], str], stopping: Callable[[], bool] = lambda: False
    ) -> None:
        """Keep the journal below the directory `state`.

        Args:
            state: The state directory.
            formers: Filled with the controls that are set, by cgroup and name, and what they were before.
            stopping: Whether somebody asked the guard to end.
        """
        self._state = state
        self._formers = formers
        self._stopping = stopping

    @contextmanager
    def open(self, watched: tuple[Watched, ...], policy: Policy) -> Iterator[HostPressure]:
        """Watch these cgroups, with what that needs of them set, and set back however it is left.

        Raises:
            Locked: another guard watches one of them.
            FeatureMissing: this kernel does not tell.
            NoSpace, OsRefused: the state directory cannot be written.
        """
        places = sorted({each.cgroup for each in watched})
        names = ["guard-" + hashlib.sha256(os.fsencode(each)).hexdigest()[:32] for each in places]
        with (
            exclusive(self._state + "/locks", names, subject=f"The guard of {', '.join(places)}"),
            ExitStack() as undo,
        ):
            operation = JournaledOperations(self._state).begin(f"guard of {', '.join(places)}")
            undo.callback(operation.end)
            operation.guard()
            operation.await_guardian()
            arms = [Arm(each, policy, operation, self._formers) for each in watched]
            for arm in arms:
                undo.callback(arm.close)
                arm.refresh()
            yield HostPressure(arms, self._stopping)
