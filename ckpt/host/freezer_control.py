"""Freeze, thaw and kill one cgroup: version 2 (`cgroup.freeze`) and version 1 (`freezer.state`).

Rules:
- freeze() returns only when the kernel has confirmed it.
- What is asked of the cgroup itself ("held") is told apart from what one above it imposes ("frozen").
- Nothing is noted here and nothing is decided: freezer.py does that, and recovery.py undoes with it.
Source: Documentation/admin-guide/cgroup-v2.rst, "cgroup.freeze", "cgroup.kill", "cgroup.events";
Documentation/admin-guide/cgroup-v1/freezer-subsystem.rst.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from typing import Final, Protocol

from ckpt.errors import FreezeTimeout, OsRefused
from ckpt.host import cgroups
from ckpt.host.frozen_tasks import unfrozen_tasks
from ckpt.units import MILLISECOND, SECOND, Nanoseconds, Pid

KILL_TIMEOUT: Final = Nanoseconds(10 * SECOND)
"""A killed task is gone at once, unless it waits in the kernel for a device."""

# cgroup_file_notify() (kernel/cgroup/cgroup.c) passes on one change of cgroup.events in 10 ms, and most freezes
# take less than 1 ms: polling alone made 4–10 ms of one freeze in ten. So look at the file again for a moment,
# leaving the processor to the tasks that must stop, and then at least each millisecond.
_LOOK_AGAIN = Nanoseconds(2 * MILLISECOND)
_POLL_MS = 1


class Control(Protocol):
    """One cgroup's freezer."""

    @property
    def cgroup(self) -> str:
        """The cgroup's directory."""

    def held(self) -> bool:
        """Whether this very cgroup was told to freeze, whatever is above it."""

    def frozen(self) -> bool:
        """Whether every task of it and below stands still now."""

    def freeze(self, timeout: Nanoseconds) -> None:
        """Stop every task and wait until the kernel confirms it.

        Raises:
            FreezeTimeout: not frozen in time, and thawed again; names the tasks and what they wait in.
        """

    def hold(self) -> None:
        """Tell the cgroup to freeze, without waiting; a cgroup that is gone has no tasks."""

    def thaw(self) -> None:
        """Take the freeze of this very cgroup back; a cgroup that is gone has none."""

    def kill(self) -> None:
        """Kill every task, wait until none is left, and leave the empty cgroup thawed.

        Raises:
            OsRefused: a task could not be killed within KILL_TIMEOUT.
        """


def control_of(cgroup: str) -> Control | None:
    """The freezer of this cgroup; None if it has none: another version-1 controller's, or a root cgroup."""
    if os.path.exists(cgroup + "/cgroup.freeze"):
        return _ControlV2(cgroup)
    if os.path.exists(cgroup + "/freezer.state"):
        return _ControlV1(cgroup)
    return None


class _ControlV2:
    """The freezer of version 2."""

    def __init__(self, cgroup: str) -> None:
        self.cgroup: Final = cgroup

    def held(self) -> bool:
        return cgroups.read_or_empty(self.cgroup, "cgroup.freeze") == "1"

    def frozen(self) -> bool:
        return "frozen 1" in cgroups.read_or_empty(self.cgroup, "cgroup.events")

    def freeze(self, timeout: Nanoseconds) -> None:
        cgroups.write(self.cgroup, "cgroup.freeze", "1")
        if not self._await_event("frozen 1", timeout):
            tasks = unfrozen_tasks(self.cgroup, waiting_only=False)
            self.thaw()
            raise FreezeTimeout(cgroup=self.cgroup, timeout_ms=timeout / 1e6, tasks=tasks)

    def hold(self) -> None:
        with _gone_is_fine():
            cgroups.write(self.cgroup, "cgroup.freeze", "1")

    def thaw(self) -> None:
        with _gone_is_fine():
            cgroups.write(self.cgroup, "cgroup.freeze", "0")

    def kill(self) -> None:
        with _gone_is_fine():
            if os.path.exists(self.cgroup + "/cgroup.kill"):
                cgroups.write(self.cgroup, "cgroup.kill", "1")
                if not self._await_event("populated 0", KILL_TIMEOUT):
                    raise _cannot_kill(self.cgroup)
            else:  # Linux before 5.14
                _kill_one_by_one(self)
            self.thaw()

    def _await_event(self, event: str, timeout: Nanoseconds) -> bool:
        fd = os.open(self.cgroup + "/cgroup.events", os.O_RDONLY)
        try:
            changed = select.poll()
            changed.register(fd, select.POLLPRI)
            return _await(
                lambda: event.encode() in os.pread(fd, 4096, 0), lambda: changed.poll(_POLL_MS), timeout
            )
        finally:
            os.close(fd)


class _ControlV1:
    """The freezer of version 1."""

    def __init__(self, cgroup: str) -> None:
        self.cgroup: Final = cgroup

    def held(self) -> bool:
        return cgroups.read_or_empty(self.cgroup, "freezer.self_freezing") == "1"

    def frozen(self) -> bool:
        return cgroups.read_or_empty(self.cgroup, "freezer.state") == "FROZEN"

    def freeze(self, timeout: Nanoseconds) -> None:
        cgroups.write(self.cgroup, "freezer.state", "FROZEN")
        # There is no notification: reading the state is what makes the kernel look at the tasks.
        if not _await(self.frozen, lambda: time.sleep(_POLL_MS / 1000), timeout):
            self.thaw()
            tasks = unfrozen_tasks(self.cgroup, waiting_only=True)
            raise FreezeTimeout(cgroup=self.cgroup, timeout_ms=timeout / 1e6, tasks=tasks)

    def hold(self) -> None:
        with _gone_is_fine():
            cgroups.write(self.cgroup, "freezer.state", "FROZEN")

    def thaw(self) -> None:
        with _gone_is_fine():
            cgroups.write(self.cgroup, "freezer.state", "THAWED")

    def kill(self) -> None:
        with _gone_is_fine():
            _kill_one_by_one(self)
            self.thaw()


def _await(reached: Callable[[], bool], pause: Callable[[], object], timeout: Nanoseconds) -> bool:
    """Wait until it is reached; False if it is not in time."""
    begin = time.monotonic_ns()
    while not reached():
        passed = time.monotonic_ns() - begin
        if passed >= timeout:
            return reached()
        if passed < _LOOK_AGAIN:
            os.sched_yield()
        else:
            pause()
    return True


def _kill_one_by_one(control: Control) -> None:
    """Without cgroup.kill: nobody can fork while all are frozen, so each round kills all that there are."""
    deadline = time.monotonic_ns() + KILL_TIMEOUT
    while pids := cgroups.processes_below(control.cgroup):
        if time.monotonic_ns() > deadline:
            raise _cannot_kill(control.cgroup)
        # A task that cannot be frozen can be killed all the same, as soon as it leaves the kernel.
        with contextlib.suppress(FreezeTimeout):
            control.freeze(Nanoseconds(500 * MILLISECOND))
        ending = select.poll()
        pidfds: list[int] = []
        for pid in cgroups.processes_below(control.cgroup) or pids:
            with contextlib.suppress(ProcessLookupError):
                pidfd = os.pidfd_open(pid)
                pidfds.append(pidfd)
                ending.register(pidfd, select.POLLIN)
                # A version-1 frozen task takes its signals only when it is thawed.
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        control.thaw()
        _await_all(ending, len(pidfds), deadline)
        for pidfd in pidfds:
            os.close(pidfd)


def _await_all(ending: select.poll, count: int, deadline: int) -> None:
    ended: set[int] = set()
    while len(ended) < count and (left := deadline - time.monotonic_ns()) > 0:
        for fd, _event in ending.poll(left / 1e6):
            ended.add(fd)
            ending.unregister(fd)


def _cannot_kill(cgroup: str) -> OsRefused:
    pids: list[Pid] = cgroups.processes_below(cgroup)
    return OsRefused(
        operation="kill",
        subject=f"every task of {cgroup}",
        reason=f"processes {', '.join(map(str, pids[:8]))} are still there after {KILL_TIMEOUT // SECOND} s",
        remedy="A task in state D waits in the kernel: see /proc/PID/stack.",
    )


@contextlib.contextmanager
def _gone_is_fine() -> Iterator[None]:
    """A cgroup that was removed has no task that could be thawed or killed."""
    try:
        yield
    except (FileNotFoundError, ProcessLookupError):
        pass
    except OSError as error:
        # The file was open when its cgroup was removed.
        if error.errno != errno.ENODEV:
            raise
