"""What the kernel is asked to tell about one cgroup's memory: version 1, version 2, and how long tasks waited (PSI).

An *arm* holds the descriptors of one cgroup, and what had to be set in it for them.

Rules:
- What is set is noted in the operation's journal before, and set back by close(), or by whoever finds the journal.
- A limit that changes, or a cgroup that was made anew, arms again.
Source: Documentation/admin-guide/cgroup-v1/memory.rst, "9. Memory thresholds", "10. OOM Control";
Documentation/admin-guide/cgroup-v2.rst, "memory.events", "memory.high"; Documentation/accounting/psi.rst.
"""

from __future__ import annotations

import os
import select
from contextlib import suppress
from typing import Final

from ckpt.errors import FeatureMissing
from ckpt.host import cgroups, linux
from ckpt.host.guard import controls
from ckpt.host.journal import MemoryControl
from ckpt.host.operations import JournaledOperation
from ckpt.model.guard_steps import (
    AtOom,
    AtPsi,
)
from ckpt.model.guarding import (
    Event,
    Policy,
    Watched,
)
from ckpt.units import MILLISECOND

_IN_MODIFY: Final = 0x2
_KILLING_OFF: Final = "1"
_EVENTS_BYTES_MAX: Final = 4096
_NEAR_SHARE: Final = 15 / 16


class Arm:
    """The descriptors of one watched cgroup."""

    def __init__(
        self,
        watched: Watched,
        policy: Policy,
        operation: JournaledOperation,
        formers: dict[tuple[str, str], str],
    ) -> None:
        """Nothing is watched yet; what will be set is noted in `operation`, and what it was before in `formers`."""
        self.watched = watched
        self._policy = policy
        self._operation = operation
        self._formers = formers
        self._inode = 0
        self._limit = 0
        self._meanings: dict[int, Event | None] = {}
        self._polled: dict[int, int] = {}
        self._also: list[int] = []
        self._counts: dict[str, int] = {}

    @property
    def descriptors(self) -> dict[int, int]:
        """From each descriptor to the events of poll(2) for which it is watched."""
        return self._polled

    def refresh(self) -> bool:
        """Arm, if that was not done, or for another limit or another cgroup of this name; gives whether it was done now.

        Raises:
            FeatureMissing: this kernel does not tell.
            OsRefused, NoSpace: it cannot be noted.
        """
        try:
            inode = os.stat(self.watched.cgroup).st_ino
        except FileNotFoundError:
            self._drop()
            self._inode = 0
            return False
        limit = controls.limit_of(self.watched.cgroup)
        if (inode, limit) == (self._inode, self._limit):
            return False
        self._drop()
        self._move_high(limit)
        self._inode, self._limit = inode, limit
        with suppress(FileNotFoundError):  # just removed: the next refresh sees it
            self._arm()
        return True

    def hear(self, fd: int, events: int) -> Event | None:
        """What the descriptor means, now that it is ready; None if it is nothing but a reason to look."""
        if not events & (select.POLLIN | select.POLLPRI):
            self._close(fd)  # the cgroup is gone
            return None
        meaning = self._meanings[fd]
        if self._polled[fd] == select.POLLIN:
            with suppress(BlockingIOError):
                os.read(fd, 64 * 1024)
            return meaning
        return meaning or self._what_happened(fd)

    def close(self) -> None:
        """Let go of the descriptors, and set back what was set; safe to repeat."""
        self._drop()
        for (cgroup, name), former in list(self._formers.items()):
            if cgroup == self.watched.cgroup:
                controls.write_back(cgroup, name, former)
                del self._formers[cgroup, name]
                self._operation.forget(MemoryControl(cgroup=cgroup, name=name, former=former))

    def _arm(self) -> None:
        cgroup = self.watched.cgroup
        if self.watched.told_in and os.path.isdir(self.watched.told_in):
            self._add(linux.inotify_open(self.watched.told_in, linux.IN_MOVED_TO), select.POLLIN, None)
        for name in controls.limit_names(cgroup):
            self._add(linux.inotify_open(f"{cgroup}/{name}", _IN_MODIFY), select.POLLIN, None)
        if controls.is_version_2(cgroup):
            self._arm_version_2(cgroup)
        else:
            self._arm_version_1(cgroup)
        for trigger in self._policy.triggers:
            if isinstance(trigger, AtPsi):
                self._add(_psi(self.watched, trigger), select.POLLPRI, Event.PSI)

    def _arm_version_1(self, cgroup: str) -> None:
        for share in self._policy.shares if self._limit else ():
            self._register(cgroup, "memory.usage_in_bytes", f"{int(share * self._limit)}", Event.THRESHOLD)
        self._register(cgroup, controls.OOM_CONTROL, "", Event.OOM)
        # Whoever is at the limit waits, and nobody is killed: there is time for a checkpoint.
        text = cgroups.read(cgroup, controls.OOM_CONTROL)
        self._set(
            cgroup,
            controls.OOM_CONTROL,
            former=_KILLING_OFF if controls.is_as(controls.OOM_CONTROL, text, _KILLING_OFF) else "0",
            value=_KILLING_OFF,
        )

    def _arm_version_2(self, cgroup: str) -> None:
        fd = os.open(f"{cgroup}/memory.events", os.O_RDONLY | os.O_CLOEXEC)
        self._add(fd, select.POLLPRI, None)
        self._counts = _counts(fd)
        if not self._limit:
            return
        # There is no threshold: whoever is above memory.high is slowed down, and that is told. Without it the kill at
        # memory.max comes before anybody could act.
        wanted = int(min(self._policy.shares, default=self._policy.goal) * self._limit)
        self._set(cgroup, controls.HIGH, former=cgroups.read(cgroup, controls.HIGH), value=str(wanted))

    def _move_high(self, limit: int) -> None:
        """Let the mark that will be set back move along with a limit that was changed."""
        key = (self.watched.cgroup, controls.HIGH)
        former = self._formers.get(key, "")
        if former.isdecimal() and limit and self._limit:
            scaled = str(int(former) * limit // self._limit)
            self._operation.note(MemoryControl(cgroup=key[0], name=key[1], former=scaled))
            self._formers[key] = scaled

    def _set(self, cgroup: str, name: str, *, former: str, value: str) -> None:
        if (cgroup, name) not in self._formers:
            self._operation.note(MemoryControl(cgroup=cgroup, name=name, former=former))
            self._formers[cgroup, name] = former
        cgroups.write(cgroup, name, value)

    def _register(self, cgroup: str, name: str, argument: str, meaning: Event) -> None:
        """Have an eventfd told when the file `name` has what `argument` says."""
        event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._add(event, select.POLLIN, meaning)
        source = os.open(f"{cgroup}/{name}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            cgroups.write(cgroup, "cgroup.event_control", f"{event} {source} {argument}".rstrip())
        except FileNotFoundError:
            raise
        except OSError as error:
            raise FeatureMissing(
                feature=f"events of {name} in {cgroup} ({error.strerror})",
                remedy="The kernel needs CONFIG_MEMCG_V1 (before Linux 6.11 CONFIG_MEMCG).",
            ) from error
        finally:
            os.close(source)

    def _what_happened(self, fd: int) -> Event | None:
        former, self._counts = self._counts, _counts(fd)
        grown = {name for name, count in self._counts.items() if count > former.get(name, 0)}
        if grown & {"oom", "max"}:
            return Event.OOM
        if "high" not in grown:
            return None
        return Event.OOM if self._is_near_the_kill() else Event.THRESHOLD

    def _is_near_the_kill(self) -> bool:
        """Whether it is time for what acts on "oom": version 2 holds nobody at the limit, it kills."""
        acts = any(isinstance(trigger, AtOom) for trigger in self._policy.triggers)
        cgroup = self.watched.cgroup
        # What can be dropped is near no kill: who reads large files is always at memory.high.
        used = controls.charged(cgroup) - controls.droppable(cgroup)
        return acts and used >= _NEAR_SHARE * self._limit

    def _add(self, fd: int, polled: int, meaning: Event | None) -> None:
        self._meanings[fd] = meaning
        self._polled[fd] = polled

    def _close(self, fd: int) -> None:
        del self._meanings[fd], self._polled[fd]
        os.close(fd)

    def _drop(self) -> None:
        for fd in list(self._polled):
            self._close(fd)


def _counts(fd: int) -> dict[str, int]:
    try:
        lines = os.pread(fd, _EVENTS_BYTES_MAX, 0).decode().splitlines()
    except OSError:  # ENODEV: the cgroup is gone
        return {}
    return {name: int(value) for name, _, value in (line.partition(" ") for line in lines)}


def _psi(watched: Watched, trigger: AtPsi) -> int:
    """A descriptor on which the kernel tells that tasks waited too long."""
    if not watched.psi:
        raise FeatureMissing(
            feature="PSI, which tells how long tasks wait for memory",
            remedy="Boot with psi=1 (CONFIG_PSI), or let the policy act on a share of the limit.",
        )
    kind = "full" if trigger.full else "some"
    fd = -1
    try:
        fd = os.open(watched.psi, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        os.write(fd, f"{kind} {trigger.stall_ns // 1000} {trigger.window_ns // 1000}\0".encode())
    except OSError as error:
        if fd >= 0:
            os.close(fd)
        raise FeatureMissing(
            feature=f"the trigger '{trigger}' in {watched.psi} ({error.strerror})",
            remedy=f"Without CAP_SYS_RESOURCE a window is a multiple of 2 s (this one is {trigger.window_ns // MILLISECOND} ms).",
        ) from error
    return fd
