"""What speaks against a dump or a restore, before anything is done."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from ckpt.units import Pid

ALIKE_MAX: Final = 5
"""How many findings of one rule are told to people: a server has thousands of connections."""


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


def few_of_each(findings: Iterable[Finding]) -> Iterator[tuple[Finding, int]]:
    """The first of each rule and severity, as they come; with the last of them, how many more there are."""
    findings = tuple(findings)
    counts = Counter(_kind(finding) for finding in findings)
    seen: Counter[tuple[str, Severity]] = Counter()
    for finding in findings:
        kind = _kind(finding)
        seen[kind] += 1
        if seen[kind] <= ALIKE_MAX:
            yield finding, counts[kind] - ALIKE_MAX if seen[kind] == ALIKE_MAX else 0


def told(findings: Iterable[Finding], say: Callable[[Finding], str]) -> tuple[str, ...]:
    """What `say` makes of the first findings of each rule, and then how many more there are."""
    sentences: list[str] = []
    for finding, more in few_of_each(findings):
        sentences.append(say(finding))
        if more:
            sentences.append(f"and {more} more of the rule {finding.rule}, which 'ckpt check --json' names")
    return tuple(sentences)


def _kind(finding: Finding) -> tuple[str, Severity]:
    return finding.rule, finding.severity
