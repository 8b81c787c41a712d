"""The networks of jobs' own, for a migration: off the source's network before its workload ends, back if it does not.

Rule: for a workload without such a network all of it does nothing.
"""

from __future__ import annotations

from contextlib import suppress

from ckpt.errors import CkptError
from ckpt.host import journal
from ckpt.host.network import detaching
from ckpt.host.network.building import host_link_of
from ckpt.host.operations import JournaledOperation
from ckpt.model.target import Target
from ckpt.units import JobName


class HostNetworks:
    """The networks of workloads on this host."""

    def __init__(self, state: str) -> None:
        """Know the jobs of this state directory."""
        self._state = state
        self._detached: dict[str, tuple[journal.NetworkDetached, ...]] = {}

    def detach(self, target: Target, operation: object) -> None:
        """Let no frame of the frozen workload out, nor any in; noted, so that a crash undoes it.

        Args:
            target: The workload, frozen.
            operation: One that JournaledOperations began (an `object`, as a port's adapter must take any).

        Raises:
            CommandFailed, FeatureMissing: ip does not do it; nothing is detached.
        """
        noted = _journaled(operation)
        steps = tuple(step for pid in target.roots if (step := detaching.step_for(pid)) is not None)
        # Trees in one namespace share the interface.
        steps = tuple({step.link if step.network == "bridge" else step.pid: step for step in steps}.values())
        self._detached[str(target.ref)] = steps
        try:
            for step in steps:
                noted.note(step)
                detaching.detach(step)
        except BaseException:
            self.attach(target, operation)
            raise

    def attach(self, target: Target, operation: object) -> None:
        """Undo detach(), unless the workload has ended; safe to repeat.

        Raises:
            CommandFailed, FeatureMissing: ip does not do it.
        """
        noted = _journaled(operation)
        for step in self._detached.pop(str(target.ref), ()):
            detaching.attach(step)
            noted.forget(step)

    def remove(self, target: Target) -> None:
        """The workload was killed for good: what is left of its network goes. Safe to repeat."""
        for step in self._detached.pop(str(target.ref), ()):
            detaching.remove(step)
        if target.job is not None:
            remove_of_job(self._state, target.job)


def remove_of_job(state: str, job: JobName) -> None:
    """Remove the host's side of the interface of a job that has ended; nothing where there is none."""
    with suppress(CkptError):
        detaching.remove_link(host_link_of(state, job))


def _journaled(operation: object) -> JournaledOperation:
    if not isinstance(operation, JournaledOperation):
        raise TypeError(operation)
    return operation
