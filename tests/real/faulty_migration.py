"""A migration of a counter with a fault in it, and how it is put in order and judged afterwards."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from harness.lab import Host
from harness.waiting import await_condition
from real.counting import Counter
from real.migrating import MigrationBed
from real.under_way import Ended, UnderWay

SILENCE_S = 2.0
"""The patience of both sides where the link is cut."""

IN_DOUBT = 3


class Settling(StrEnum):
    """How people put it in order."""

    SOURCE = "recover-on-source"
    TARGET = "recover-on-target-first"
    RESUME = "resume"


@dataclass(slots=True)
class FaultyMigration:
    """One counter on the source, and its migration."""

    bed: MigrationBed
    counter: Counter
    under_way: UnderWay | None = None

    def start(
        self, *options: object, failpoint: str = "", agent_failpoint: str = "", silence_s: float = 0
    ) -> UnderWay:
        """Start it."""
        self.under_way = self.bed.start_migration(
            self.counter.job,
            *options,
            failpoint=failpoint,
            agent_failpoint=agent_failpoint,
            silence_s=silence_s,
        )
        return self.under_way

    def stop_at(self, phase: str, *options: object, silence_s: float = 0) -> UnderWay:
        """Start it, and let the source stand still at this phase."""
        started = self.start(*options, failpoint=f"{phase}:SIGSTOP", silence_s=silence_s)
        started.await_stopped()
        return started

    def must_end(self, exit_code: int, slug: str = "") -> Ended:
        """Wait for the end of the source's controller, which must be so."""
        assert self.under_way is not None
        ended = self.under_way.wait()
        assert ended.exit_code == exit_code, ended
        assert ended.document.get("error", {}).get("slug", "") == slug, ended
        return ended

    def must_run_on(self, host: Host) -> None:
        """It runs there, and there alone, as soon as the guardians have done their part."""
        await_condition(
            lambda: self.bed.copies_alive(self.counter).running,
            lambda: f"a running copy: {self.bed.copies_alive(self.counter)}",
        )
        self.bed.assert_one_copy(self.counter, host)

    @property
    def id(self) -> str:
        """Of the migration, by what lies on the hosts."""
        (found,) = {each for host in self.bed.hosts for each in self.bed.migrations(host)}
        return found

    def settle(self, how: Settling, *, in_doubt: bool) -> None:
        """Put it in order; `in_doubt`: the target must first say that only the source knows."""
        bed = self.bed
        bed.await_no_agent(bed.target)
        match how:
            case Settling.SOURCE:
                pass
            case Settling.TARGET:
                if in_doubt:
                    bed.await_no_copy_runs(self.counter, bed.target)
                before = bed.copies_alive(self.counter)
                told = bed.recover(bed.target, exit_code=IN_DOUBT if in_doubt else 0)
                if in_doubt:
                    (problem,) = told["problems"]
                    assert problem["slug"] == "wrong-state", problem
                    assert bed.migrations(bed.target), "it kept nothing"
                    after = bed.copies_alive(self.counter)
                    assert after == before, (before, after)
            case Settling.RESUME:
                bed.resume(self.id)
        bed.recover(bed.source)
        bed.recover(bed.target)

    def close(self) -> None:
        """End its controller, if a test has left it."""
        if self.under_way is not None and self.under_way.runs():
            self.under_way.kill()
            self.under_way.wait()

    def must_be_alone(self, on: Host) -> None:
        """It lives on this host alone, whole, and nothing is left of the migration."""
        self.bed.assert_one_copy(self.counter, on)
        self.bed.await_nothing_left(self.counter)


def bytes_below(folder: Path) -> int:
    """What the files in it hold, together."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())
