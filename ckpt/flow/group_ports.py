"""What the flows of a group need: processes that do the same, each for one member, and wait for each other.

Rules:
- Who waits at a point goes on only when all have come there: at once, or none does.
- If one fails, ends or is ended, or the one that started them does, whoever waits then gets GaveUp.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import Protocol, TypeVar

from ckpt.model.group import MemberFailure
from ckpt.units import JobName

Report = TypeVar("Report")


class Meeting(Protocol):
    """A member's way to the others."""

    def arrive(self, point: IntEnum, said: int = 0) -> int:
        """Wait until all have come to this point; gives the greatest number that anyone said there.

        A point at which all have been is passed without a wait.

        Raises:
            GaveUp: they will not all come.
        """


class Ends(Protocol[Report]):
    """How it ended for each member."""

    @property
    def reports(self) -> dict[JobName, Report]:
        """What those reported who have done it all."""

    @property
    def failures(self) -> tuple[MemberFailure, ...]:
        """Who has failed and why, in the order in which it was seen; who only gave up for another is the last."""

    def passed(self, point: IntEnum) -> bool:
        """Whether all have come to this point, and have gone on from there."""

    def numbers(self, point: IntEnum) -> tuple[int, ...]:
        """What was said there."""


class Together(Protocol):
    """Starts processes for members."""

    def run(
        self,
        members: tuple[JobName, ...],
        work: Callable[[JobName, Meeting], Report],
        points: type[IntEnum],
        kind: type[Report],
    ) -> Ends[Report]:
        """Do the work for each member, each in a process of its own; returns when all of them have ended.

        Raises:
            Interrupted: the processes were told, and have ended, before all had come to the last point.
        """
