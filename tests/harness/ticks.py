"""The logs of the subjects (images/subjects/README.md)."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

from harness.waiting import await_condition


class TickLog:
    """What one subject wrote so far."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def lines(self) -> list[dict[str, Any]]:
        """All complete lines.

        Raises:
            AssertionError: the subject found something wrong with itself.
        """
        content = self.path.read_bytes() if self.path.exists() else b""
        lines = [json.loads(line) for line in content[: content.rfind(b"\n") + 1].splitlines()]
        errors = [line for line in lines if "error" in line]
        assert not errors, f"the subject says: {errors}"
        return lines

    def ticks(self) -> list[dict[str, Any]]:
        """The ticks alone."""
        return [line for line in self.lines() if "tick" in line]

    def last(self) -> dict[str, Any]:
        """The newest tick.

        Raises:
            AssertionError: there is none yet.
        """
        ticks = self.ticks()
        assert ticks, f"no tick in {self.path}"
        return ticks[-1]

    def count(self) -> int:
        """How many ticks there are; it grows also where a program was taken back to an earlier one."""
        return len(self.ticks())

    def await_more(self, more: int = 3, *, timeout_s: float = 60) -> dict[str, Any]:
        """Wait until there are so many more ticks than now; returns the newest."""
        wanted = self.count() + more
        await_condition(
            lambda: self.count() >= wanted,
            lambda: f"tick {wanted} in {self.path}, which has {self.count()}",
            timeout_s=timeout_s,
        )
        return self.last()

    def check(self, *, taken_back: int = 0) -> None:
        """Every number from 1 on is there, once and in order.

        Args:
            taken_back: How often the program was taken back to an earlier tick: so often, and no more, the
                numbers go back, and on from there without a gap.

        Raises:
            AssertionError: they are not.
        """
        numbers = [tick["tick"] for tick in self.ticks()]
        assert numbers, f"no tick in {self.path}"
        assert numbers[0] == 1, f"the first tick in {self.path} is {numbers[0]}"
        breaks = [(before, after) for before, after in itertools.pairwise(numbers) if after != before + 1]
        gaps = [f"{before} → {after}" for before, after in breaks if after > before]
        assert not gaps, f"ticks are missing in {self.path}: {gaps}"
        assert len(breaks) <= taken_back, f"ticks are repeated in {self.path}: {breaks}"
