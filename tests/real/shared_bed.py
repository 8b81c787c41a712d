"""One bed for many tests of migrations: it is made anew only after a test that left something in it.

Rule: what the bed is like at the next test's beginning is read from the kernel and from files, never assumed.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from harness.command import Ckpt
from harness.traces import Traces
from real.counting import Counter
from real.migrating import MigrationBed


class SharedBed:
    """The bed, when somebody has it."""

    def __init__(self, new_folder: Callable[[], Path]) -> None:
        """Make each bed in a folder of its own."""
        self._new_folder = new_folder
        self._traces: Traces | None = None
        self._ckpt: Ckpt | None = None
        self._bed: MigrationBed | None = None

    def take(self) -> MigrationBed:
        """A bed on which nothing is left."""
        if self._bed is None:
            self._traces = Traces(self._new_folder())
            self._ckpt = Ckpt(self._traces)
            self._bed = MigrationBed(self._traces, self._ckpt)
        return self._bed

    def give_back(self, *counters: Counter) -> None:
        """End the counters; the next one gets the same bed if that is all there was."""
        bed = self._bed
        assert bed is not None
        if not bed.is_link_up:
            bed.link_up()
        for host in bed.hosts:
            with suppress(FileNotFoundError):
                bed.free_state(host)
        for counter in counters:
            bed.end(counter)
        if bed.leftovers():
            self.close()

    def close(self) -> None:
        """Take the bed down."""
        if self._ckpt is not None:
            self._ckpt.close()
        if self._traces is not None:
            self._traces.remove()
        self._traces = self._ckpt = self._bed = None
