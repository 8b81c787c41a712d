"""The freezer of one workload: where it is if it has a cgroup of its own, else in one that is made for it.

Rules:
- Each step is noted in the operation's journal before it is taken; the guardian is up before the first.
- A cgroup that somebody else holds frozen is left as it was found: frozen after thaw(), too.
- No freeze from above or below is tolerated: CRIU lifts only the freeze that it is told of, hangs in the other
  one, and the task dies of SIGTRAP when CRIU is ended (seen on Linux 6.18 with CRIU 4.2.1; decisions/0005).
Source: decisions/0005; Documentation/admin-guide/cgroup-v2.rst, "cgroup.freeze".
"""

from __future__ import annotations

import time
from typing import Final, Protocol

from ckpt.errors import FeatureMissing, FreezeTimeout, WrongState
from ckpt.host import cgroups
from ckpt.host.freezer_control import Control, control_of
from ckpt.host.gathering import Gathering, put_back
from ckpt.host.journal import Frozen, Killing, Step
from ckpt.units import SECOND, Nanoseconds

FREEZE_AGAIN_TIMEOUT: Final = Nanoseconds(5 * SECOND)
"""The tasks were frozen a moment ago, and CRIU has let go of them."""

CONFIRM_TIMEOUT: Final = Nanoseconds(SECOND)
_LOOK_AGAIN_S: Final = 0.0005


class FreezeJournal(Protocol):
    """What a freezer needs of an operation."""

    def await_guardian(self) -> None:
        """Return when the guardian watches."""

    def note(self, step: Step) -> None:
        """Note a step that is about to be taken."""

    def forget(self, step: Step) -> None:
        """The step has been undone."""


class CgroupFreezer:
    """Freezes a cgroup that holds the workload and nothing else. Fits the port `Freezer`."""

    def __init__(self, cgroup: str, operation: FreezeJournal) -> None:
        self._cgroup = cgroup
        self._operation = operation
        self._held_before = False
        self._noted = False

    @property
    def cgroup(self) -> str:
        """The absolute path of the cgroup directory that is frozen."""
        return self._cgroup

    def gather(self) -> None:
        """Nothing: all processes are here."""

    def release(self) -> None:
        """Nothing: no process was moved."""

    def prepare(self) -> None:
        """Do all that freeze() needs but freezing: it may take tens of milliseconds.

        Raises:
            WrongState: a cgroup above or below is frozen by somebody else.
        """
        control = self._control()
        _refuse_other_freezes(self._cgroup)
        self._operation.await_guardian()
        if not self._noted:
            self._held_before = control.held()
            self._operation.note(self._step)
            self._noted = True

    def freeze(self, timeout: Nanoseconds) -> None:
        """Stop every task of the cgroup and wait until the kernel confirms it.

        Raises:
            FreezeTimeout: not frozen in time, and thawed again; names the tasks and what they wait in.
            WrongState: a cgroup above or below is frozen by somebody else.
        """
        if not self._noted:
            self.prepare()
        try:
            self._control().freeze(timeout)
        except FreezeTimeout:
            self._forget()
            raise

    def is_frozen(self) -> bool:
        """Whether the kernel says that every task of the cgroup is stopped.

        Tasks that CRIU has just let go are on their way: told to freeze, they run no more, but it takes a moment
        until the kernel says so; and longer where one of them is dying.
        """
        control = control_of(self._cgroup)
        patience_ends = time.monotonic_ns() + CONFIRM_TIMEOUT
        while control is not None and control.held():
            if control.frozen() or not cgroups.processes_below(self._cgroup):
                return True
            if time.monotonic_ns() > patience_ends:
                return False
            time.sleep(_LOOK_AGAIN_S)
        return False

    def thaw(self) -> None:
        """Let every task go on, or as it was found if somebody else had it frozen; safe to repeat."""
        if not self._noted:
            return
        control = control_of(self._cgroup)
        if control is not None:  # the cgroup is still there
            restore_freeze(control, held_before=self._held_before)
        self._forget()

    def kill(self) -> None:
        """Kill every task of the cgroup and wait until none is left, zombies of others excepted.

        Once begun it will be finished, by `ckpt recover` if need be: half a workload is worth nothing. The
        empty cgroup is left thawed, so that something can be restored into it.

        Raises:
            OsRefused: a task could not be killed.
        """
        control = control_of(self._cgroup)
        if control is not None:
            self._operation.note(Killing(cgroup=self._cgroup))
            control.kill()
            self._operation.forget(Killing(cgroup=self._cgroup))
        self._forget()

    @property
    def _step(self) -> Frozen:
        return Frozen(cgroup=self._cgroup, held_before=self._held_before)

    def _forget(self) -> None:
        if self._noted:
            self._noted = False
            self._operation.forget(self._step)

    def _control(self) -> Control:
        control = control_of(self._cgroup)
        if control is None:
            raise FeatureMissing(
                feature=f"a freezer in {self._cgroup}",
                remedy="Name the workload by --pid: it is gathered into a cgroup that has one.",
            )
        return control


class GatheringFreezer(CgroupFreezer):
    """Freezes a workload that shares its cgroup with others. Fits the port `Freezer`."""

    def __init__(self, gathering: Gathering, operation: FreezeJournal) -> None:
        super().__init__(gathering.cgroup, operation)
        self._gathering = gathering

    def gather(self) -> None:
        """Bring all processes of the workload into `cgroup`, noting first where they came from.

        Raises:
            OsRefused: the kernel refused; those that were moved are back.
        """
        self._operation.await_guardian()
        try:
            self._gathering.gather()
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Put the processes back where they came from and remove the cgroup; safe to repeat.

        Raises:
            OsRefused: the kernel refused; `ckpt recover` will try again.
        """
        step = self._gathering.step
        put_back(step)
        self._operation.forget(step)


def restore_freeze(control: Control, *, held_before: bool) -> None:
    """Thaw, unless somebody else had it frozen: then freeze what CRIU may have thawed, without waiting."""
    if not held_before:
        control.thaw()
    elif not control.held():
        control.freeze(FREEZE_AGAIN_TIMEOUT)


def _refuse_other_freezes(cgroup: str) -> None:
    others = [
        each for each in cgroups.with_all_above(cgroup) + cgroups.with_all_below(cgroup) if each != cgroup
    ]
    for each in others:
        control = control_of(each)
        if control is not None and control.held():
            raise WrongState(
                subject=f"The cgroup {each}",
                state="frozen",
                operation=f"a checkpoint of {cgroup}",
                needed="thawed",
                remedy="Thaw it: CRIU would hang on a freeze that is not the workload's own.",
            )
