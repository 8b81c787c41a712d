"""Members that wait for each other in threads of one process. Fits ckpt.flow.group_ports.Together."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from ckpt.errors import CkptError, GaveUp
from ckpt.model.group import MemberFailure
from ckpt.units import JobName


@dataclass
class FakeEnds:
    members: int
    reports: dict[JobName, Any] = field(default_factory=dict)
    failures: tuple[MemberFailure, ...] = ()
    said: dict[int, dict[JobName, int]] = field(default_factory=dict)
    broken: bool = False

    def passed(self, point: IntEnum) -> bool:
        return len(self.said.get(point, {})) == self.members

    def numbers(self, point: IntEnum) -> tuple[int, ...]:
        return tuple(self.said.get(point, {}).values())


class FakeTogether:
    def run(
        self,
        members: tuple[JobName, ...],
        work: Callable[[JobName, Any], Any],
        points: type[IntEnum],
        kind: type,
    ) -> FakeEnds:
        ends = FakeEnds(len(members))
        news = threading.Condition()

        def do(member: JobName) -> None:
            try:
                report = work(member, FakeMeeting(member, ends, news))
            except Exception as error:
                with news:
                    _note(ends, member, error)
                    news.notify_all()
            else:
                with news:
                    ends.reports[member] = report

        threads = [threading.Thread(target=do, args=(member,)) for member in members]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=60)
            assert not thread.is_alive(), "they wait for each other for ever"
        return ends


class FakeMeeting:
    def __init__(self, member: JobName, ends: FakeEnds, news: threading.Condition) -> None:
        self.member = member
        self.ends = ends
        self.news = news

    def arrive(self, point: IntEnum, said: int = 0) -> int:
        with self.news:
            self.ends.said.setdefault(point, {}).setdefault(self.member, said)
            self.news.notify_all()
            self.news.wait_for(lambda: self.ends.passed(point) or self.ends.broken)
            if not self.ends.passed(point):
                raise GaveUp
            return max(self.ends.numbers(point))


def _note(ends: FakeEnds, member: JobName, error: Exception) -> None:
    slug = error.slug if isinstance(error, CkptError) else "bug"
    failure = MemberFailure(member=member, slug=slug, message=str(error), hint="", exit_code=1)
    first = slug != GaveUp.slug and all(each.slug == GaveUp.slug for each in ends.failures)
    ends.failures = (failure, *ends.failures) if first else (*ends.failures, failure)
    ends.broken = True
