"""A dump of a workload that is at its memory limit: room to stop in, room for CRIU, and the limits back afterwards.

A task that waits in the kernel for memory cannot be frozen before it gets some, and CRIU's parasite needs a little of
the workload's own; without it the dump fails, and the task may be lost.

Rules:
- First the freeze is asked for, then the limit is raised, bit by bit, until all stand still: what is not running takes
  no more than it was waiting for.
- What is raised is noted in the operation's journal before, and set back when it is not needed any more; as long as
  more is used than before, it stays.
- A checkpoint records the limits as they were before.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Protocol

from ckpt.host import cgroups
from ckpt.host.cgroup_settings import directory_of
from ckpt.host.freezer_control import control_of
from ckpt.host.guard import controls
from ckpt.host.journal import MemoryControl
from ckpt.host.operations import JournaledOperation
from ckpt.model.workload import CgroupRecord, Workload
from ckpt.units import MILLISECOND, Nanoseconds

PATIENCE: Final = Nanoseconds(5 * MILLISECOND)
"""How long a freeze takes without pressure, with something to spare."""

TO_STOP_BYTES: Final = 256 << 10
TO_DUMP_BYTES: Final = 1 << 20
TO_DUMP_THREAD_BYTES: Final = 16 << 10
"""What a thread that is dumped may take in the workload's own account: its stack in the kernel and CRIU's."""

_LOOK_AGAIN_S: Final = 0.0005
_HOLD_OFF_PART: Final = 8


@dataclass(slots=True)
class Room:
    """The limits around one victim, as they were and as they had to be raised.

    `formers` are controls that a guard has set, with what they were before; see as_before().
    """

    cgroup: str
    formers: Mapping[tuple[str, str], str] = field(default_factory=dict)
    _raised: dict[tuple[str, str], str] = field(default_factory=dict)
    _operation: JournaledOperation | None = None

    def begin(self, operation: JournaledOperation) -> None:
        """What is raised is noted there."""
        self._operation = operation

    def raise_by(self, size: int) -> None:
        """Raise every limit that leaves less than `size` by `size`; what the kernel refuses stays."""
        for cgroup in controls.with_limits(self.cgroup):
            limit = controls.limit_of(cgroup)
            if limit - controls.charged(cgroup) >= size:
                continue
            for name in controls.limit_names(cgroup):
                self._note(cgroup, name)
            try:
                controls.raise_to(cgroup, limit + size)
            except OSError:  # gone, or not ours to change: then the freeze, or CRIU, says what is wrong
                continue

    def hold_off_kill(self) -> None:
        """Where the kernel kills at the limit instead of letting tasks wait, raise it by a part of the victim's own."""
        if controls.is_version_2(self.cgroup) and (limit := controls.limit_of(self.cgroup)):
            self.raise_by(limit // _HOLD_OFF_PART)

    def settle(self, *, patient: bool) -> None:
        """Set back what was raised, where no more is used; safe to repeat.

        If `patient`, the memory of what has just ended is waited for.
        """
        # The limit of memory before that of memory and swap.
        for (cgroup, name), value in reversed(list(self._raised.items())):
            problem = controls.write_back(cgroup, name, value, patient=patient)
            if not problem:
                del self._raised[cgroup, name]
                if self._operation is not None:
                    self._operation.forget(MemoryControl(cgroup=cgroup, name=name, former=value))

    def as_before(self, workload: Workload) -> Workload:
        """The workload with the limits as they were before anything was raised or set for it."""
        mounted = {each.name: each for each in cgroups.hierarchies()}
        former = {**self.formers, **self._raised}

        def corrected(record: CgroupRecord) -> CgroupRecord:
            if record.hierarchy not in mounted:
                return record
            place = directory_of(record, mounted[record.hierarchy])
            return replace(
                record,
                settings=tuple(
                    replace(setting, value=former.get((place, setting.name), setting.value))
                    for setting in record.settings
                ),
            )

        return replace(workload, cgroups=tuple(corrected(each) for each in workload.cgroups))

    def _note(self, cgroup: str, name: str) -> None:
        if (cgroup, name) in self._raised:
            return
        value = cgroups.read_or_empty(cgroup, name)
        if self._operation is not None:
            self._operation.note(MemoryControl(cgroup=cgroup, name=name, former=value))
        self._raised[cgroup, name] = value


class Freezer(Protocol):
    """What freezes where there is no want of memory."""

    @property
    def cgroup(self) -> str:
        """The absolute path of the cgroup directory that is frozen."""

    def gather(self) -> None:
        """Bring all processes of the workload into `cgroup`."""

    def release(self) -> None:
        """Put the processes back where they came from."""

    def prepare(self) -> None:
        """Do all that freeze() needs but freezing."""

    def freeze(self, timeout: Nanoseconds) -> None:
        """Stop every task of the cgroup and wait until the kernel confirms it."""

    def is_frozen(self) -> bool:
        """Whether the kernel says that every task of the cgroup is stopped."""

    def thaw(self) -> None:
        """Let every task go on."""

    def kill(self) -> None:
        """Kill every task of the cgroup."""


class RoomyFreezer:
    """Freezes a workload that may wait for memory. Fits the port `Freezer`."""

    def __init__(self, freezer: Freezer, room: Room) -> None:
        """Freeze with `freezer`, and make `room`."""
        self._freezer = freezer
        self._room = room

    @property
    def cgroup(self) -> str:
        """The absolute path of the cgroup directory that is frozen."""
        return self._freezer.cgroup

    def gather(self) -> None:
        """Bring all processes of the workload into `cgroup`."""
        self._freezer.gather()
        # Until all stand still, CRIU starts up, and the tasks, slowed down as they are, go on growing.
        self._room.hold_off_kill()

    def release(self) -> None:
        """Put the processes back where they came from; safe to repeat."""
        self._freezer.release()

    def prepare(self) -> None:
        """Do all that freeze() needs but freezing."""
        self._freezer.prepare()

    def freeze(self, timeout: Nanoseconds) -> None:
        """Stop every task of the cgroup, with as much more memory as that takes, and make room for CRIU.

        Raises:
            FreezeTimeout: not frozen in time, and thawed again; names the tasks and what they wait in.
        """
        control = control_of(self.cgroup)
        began = time.monotonic_ns()
        if control is not None:
            control.hold()
            patience_ends = began + PATIENCE
            while not control.frozen() and time.monotonic_ns() < began + timeout:
                if time.monotonic_ns() >= patience_ends:
                    self._room.raise_by(TO_STOP_BYTES)
                    patience_ends = time.monotonic_ns() + PATIENCE
                time.sleep(_LOOK_AGAIN_S)
        left = Nanoseconds(max(timeout - (time.monotonic_ns() - began), PATIENCE))
        self._freezer.freeze(left)
        threads = sum(len(cgroups.threads_in(each)) for each in cgroups.with_all_below(self.cgroup))
        self._room.raise_by(TO_DUMP_BYTES + threads * TO_DUMP_THREAD_BYTES)

    def is_frozen(self) -> bool:
        """Whether the kernel says that every task of the cgroup is stopped."""
        return self._freezer.is_frozen()

    def thaw(self) -> None:
        """Let every task go on; safe to repeat."""
        self._freezer.thaw()
        self._room.settle(patient=False)

    def kill(self) -> None:
        """Kill every task of the cgroup and wait until none is left, zombies of others excepted."""
        self._freezer.kill()
        self._room.settle(patient=True)
