"""The standard streams of a job that this process starts, restores or takes over: nothing, our input, or a terminal.

Rule: whoever makes them closes them, however the job ends; what the job was given of them is its own by then.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Self

from ckpt.cli.standard_input import StandardInput, forget_position
from ckpt.cli.supervising import Participant
from ckpt.cli.terminal import OwnTerminal
from ckpt.host.launch import Stdio
from ckpt.host.outside import JobTerminal, Joined

if TYPE_CHECKING:
    from ckpt.host.jobs import JobRecord, JobRegistry
    from ckpt.host.process_table import ProcessRef


class Streams:
    """The streams of one job; a context manager."""

    def __init__(self, *, tty: bool, detached: bool) -> None:
        """Say what is wanted: with `tty` a terminal of its own; `detached` nobody feeds it."""
        self._is_detached = detached
        self._has_begun = False
        self._made = ExitStack()
        self._terminal = OwnTerminal() if tty else None
        if self._terminal is not None:
            self._made.callback(self._terminal.close)
        self._input: StandardInput | None = None

    def to_start(self) -> tuple[Stdio, JobTerminal | None]:
        """What a new job is started with: its standard input, and its terminal if it has one."""
        if self._terminal is not None:
            return Stdio(path=os.devnull), self._terminal.given
        if self._is_detached:
            return Stdio(path=os.devnull), None
        stdio, self._input = StandardInput.for_start(self._made)
        return stdio, None

    def to_restore(self, registry: JobRegistry, record: JobRecord | None, log: str) -> Joined:
        """What a job is restored with; `log` is where the user wants its output, "" for the job's own log."""
        if record is not None:
            forget_position(registry, record.name)
        if self._terminal is not None:
            return Joined(terminal=self._terminal.given, log=log)
        if self._is_detached:
            return Joined(log=log)
        self._input = StandardInput.for_restore()
        self._made.callback(self._input.close)
        return Joined(stdin=self._input.read_end, feeder=self._input.feeder, log=log)

    def started(self, registry: JobRegistry, record: JobRecord) -> None:
        """The job runs, and has what it was given."""
        self._has_begun = True
        if self._input is not None:
            self._input.started(registry, record)
        if self._terminal is not None:
            self._terminal.join(record.log, reads=not self._is_detached)

    def restored(self, registry: JobRegistry, record: JobRecord, warn: Callable[[str], None]) -> None:
        """The job runs again; `warn` is told in a sentence what cannot be as it was."""
        self._has_begun = True
        if self._input is not None:
            self._input.restored(registry, record, warn)
        if self._terminal is not None:
            self._terminal.join(record.log, anew=True, reads=not self._is_detached)

    def taken_over(self, record: JobRecord, warn: Callable[[str], None]) -> None:
        """The job runs since before: its terminal is its shim's, its input has ended with whoever fed it."""
        if self._terminal is not None:
            self._has_begun = self._terminal.take_over(record.shim.pid)
            if self._has_begun:
                self._terminal.join(record.log, anew=True, reads=not self._is_detached)
            else:
                warn(f"{record.name} has no terminal of its own: --tty does nothing")

    @property
    def feeder(self) -> ProcessRef | None:
        """Who writes into the pipe that the job was given, and is at a loss without: this process, or None."""
        return None if self._input is None else self._input.feeder

    def went_on(self, registry: JobRegistry, record: JobRecord, warn: Callable[[str], None]) -> None:
        """The job runs, though who began it was interrupted: it has what it was given, or is somebody else's."""
        if self._has_begun:
            return
        if self.feeder is None or record.feeder != self.feeder:
            self.taken_over(record, warn)
        elif record.restored_from is None:
            self.started(registry, record)
        else:
            self.restored(registry, record, warn)

    @property
    def participants(self) -> tuple[Participant, ...]:
        """Those who take part in serving the job."""
        if not self._has_begun:
            return ()
        return tuple(each for each in (self._input, self._terminal) if each is not None)

    def close(self) -> None:
        """Let go of them, with our terminal as it was; safe to repeat."""
        self._made.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
