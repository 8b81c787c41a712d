"""A freezer without a kernel: it keeps what the contract promises, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass, field

from ckpt.host.journal import Frozen, Killing, Step
from ckpt.units import Nanoseconds


@dataclass
class RecordingJournal:
    """What a freezer noted and has not forgotten yet, and everything that it ever noted."""

    open_steps: list[Step] = field(default_factory=list)
    noted: list[Step] = field(default_factory=list)
    guardian_awaited: bool = False

    def await_guardian(self) -> None:
        self.guardian_awaited = True

    def note(self, step: Step) -> None:
        self.forget(step)
        self.open_steps.append(step)
        self.noted.append(step)

    def forget(self, step: Step) -> None:
        self.open_steps = [
            each for each in self.open_steps if (type(each), each.subject) != (type(step), step.subject)
        ]


@dataclass
class FakeFreezer:
    """Fits the port `Freezer`; `held` is the kernel's word, `processes` how many are alive."""

    operation: RecordingJournal
    cgroup: str = "/cgroup/of/workload"
    held: bool = False
    processes: int = 3
    _held_before: bool = False
    _noted: bool = False

    def gather(self) -> None:
        pass

    def release(self) -> None:
        pass

    def prepare(self) -> None:
        self.operation.await_guardian()
        if not self._noted:
            self._held_before = self.held
            self.operation.note(self._step)
            self._noted = True

    def freeze(self, timeout: Nanoseconds) -> None:
        if not self._noted:
            self.prepare()
        self.held = True

    def is_frozen(self) -> bool:
        return self.held

    def thaw(self) -> None:
        if self._noted:
            self.held = self._held_before
            self._forget()

    def kill(self) -> None:
        self.operation.note(Killing(cgroup=self.cgroup))
        self.processes = 0
        self.held = False
        self.operation.forget(Killing(cgroup=self.cgroup))
        self._forget()

    @property
    def _step(self) -> Frozen:
        return Frozen(cgroup=self.cgroup, held_before=self._held_before)

    def _forget(self) -> None:
        if self._noted:
            self._noted = False
            self.operation.forget(self._step)
