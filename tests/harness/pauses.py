"""Time for which this machine ran nobody: a virtual machine stands still for seconds when its host is busy.

A test that bounds a time bounds the time in which there was a machine to run on: what is promised is no promise of
the host of a test machine.
"""

from __future__ import annotations

import threading
import time
from typing import Final

_TICK_S: Final = 0.01
PAUSE_S: Final = 0.1
"""A thread that wants next to nothing is kept off a CPU for less, however many others want one."""


class Pauses:
    """A watch that runs from `start` to `stop`, and knows when the machine did not."""

    def __init__(self) -> None:
        self._ended = threading.Event()
        self._seen = time.monotonic()
        self._pauses: list[tuple[float, float]] = []
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def start(self) -> None:
        self._seen = time.monotonic()
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()

    def since(self, began: float) -> float:
        """For how many seconds the machine stood still since then (time.monotonic())."""
        now = time.monotonic()
        pauses = [*self._pauses, *([(self._seen, now)] if now - self._seen > PAUSE_S else [])]
        return sum(after - max(before, began) for before, after in pauses if after > began)

    def ran_s(self, began: float) -> float:
        """For how many seconds the machine ran since then (time.monotonic())."""
        return time.monotonic() - began - self.since(began)

    def _watch(self) -> None:
        while not self._ended.wait(_TICK_S):
            now = time.monotonic()
            if now - self._seen > PAUSE_S:
                self._pauses.append((self._seen, now))
            self._seen = now
