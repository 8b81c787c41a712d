"""What speaks against a dump or a restore, before anything is done."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from ckpt.units import Pid


class Severity(StrEnum):
    """What a finding means.

    `BLOCKER`: it would fail, or the workload would be lost. `WARNING`: it works, and something is lost or needs care.
    `INFO`: good to know.
    """

    BLOCKER = "blocker"
    WARNING = "warning"
    INFO = "info"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that a rule found.

    `pid` and `name` tell the process, None and "" where it is none in particular; `subject` is the object ("fd 7 →
    anon_inode:[io_uring]"). `message` is a sentence without its period, `remedy` whole sentences; `option` is ours that
    would deal with it, "" where none does.
    """

    rule: str
    severity: Severity
    pid: Pid | None
    name: str
    subject: str
    message: str
    remedy: str
    option: str

    @property
    def sentence(self) -> str:
        """What was found and what to do, for people."""
        return f"{self.message}. {self.remedy}" if self.remedy else f"{self.message}."


def blockers(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Those that forbid it."""
    return tuple(finding for finding in findings if finding.severity is Severity.BLOCKER)


def in_order(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """The gravest first, else as they are."""
    places = {severity: place for place, severity in enumerate(Severity)}
    return tuple(sorted(findings, key=lambda finding: places[finding.severity]))
