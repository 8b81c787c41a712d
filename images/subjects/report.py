"""The log of a subject: one JSON object a line, held open with O_APPEND.

Rule: a line is one write(2), so that it is there as a whole or not at all, whenever the program is killed.
"""

from __future__ import annotations

import json
import os
import time


class Report:
    """Writes the ticks of one process."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)

    def tick(self, number: int, **facts: object) -> None:
        """One more tick, with the clocks as this process sees them."""
        self._write(
            {
                "tick": number,
                "pid": os.getpid(),
                "monotonic_ns": time.clock_gettime_ns(time.CLOCK_MONOTONIC),
                "boottime_ns": time.clock_gettime_ns(time.CLOCK_BOOTTIME),
                "realtime_ns": time.clock_gettime_ns(time.CLOCK_REALTIME),
                **facts,
            }
        )

    def error(self, number: int, problem: str) -> None:
        """What this process found wrong with itself."""
        self._write({"tick": number, "pid": os.getpid(), "error": problem})

    def _write(self, line: dict[str, object]) -> None:
        os.write(self._fd, json.dumps(line).encode() + b"\n")
