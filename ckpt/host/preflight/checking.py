"""Ask the rules.

Rules:
- One that cannot read what it needs finds nothing, and does not keep the others from being asked.
- One with a bug fails no dump of a workload that may be in best health: that it could not be asked is a warning, with
  the place in the code, in a check and in a dump alike. What the others found is told beside it.
- What was found of a process that has ended meanwhile is not told.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from typing import Final

from ckpt.host.preflight.facts import Facts
from ckpt.host.preflight.rule import Found, Rule, When
from ckpt.host.preflight.table import RULES
from ckpt.model.findings import Finding, Severity, in_order

EVER: Final = frozenset(When)
CHECKED: Final = frozenset((When.BEFORE, When.ALWAYS, When.CHECK))
BEFORE_FREEZE: Final = frozenset((When.BEFORE, When.ALWAYS))
LASTING_UNDER_FREEZE: Final = frozenset((When.ALWAYS,))
PASSING: Final = frozenset((When.MOMENT,))

_RULE: Final = "the rule itself"
"""The subject of what is told of a rule that has a bug."""


def check(facts: Facts, when: Collection[When] = EVER, rules: Iterable[Rule] = RULES) -> tuple[Finding, ...]:
    """Everything that the rules find, the gravest first; what several processes share is told once.

    Args:
        facts: What is looked at.
        when: Which rules are asked.
        rules: Of these.
    """
    found = {
        (finding.rule, finding.subject, finding.message): finding
        for rule in rules
        if rule.when in when
        for finding in _ask(rule, facts)
        if not _has_ended(finding, facts)
    }
    return in_order(found.values())


def unasked(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Those that say that a rule could not be asked."""
    return tuple(finding for finding in findings if finding.subject == _RULE)


def _ask(rule: Rule, facts: Facts) -> Iterator[Finding]:
    try:
        with suppress(OSError):
            for found in rule.find(facts):
                yield _finding(rule, found, facts)
    except Exception as error:  # noqa: BLE001 - whatever a rule may run into; see above
        yield _bug(rule, error)


def _bug(rule: Rule, error: Exception) -> Finding:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    said = " ".join(f"{type(error).__name__}: {error}".split())
    return Finding(
        rule=rule.name,
        severity=Severity.WARNING,
        pid=None,
        name="",
        subject=_RULE,
        message=f"the rule {rule.name} could not be asked: {said} ({os.path.basename(frame.filename)}, line {frame.lineno})",
        remedy="That is a bug in ckpt; please report it. What the rule looks for may be there.",
        option="",
    )


def _has_ended(finding: Finding, facts: Facts) -> bool:
    """Whether its process ended while it was looked at: what was found may have been its end."""
    task = facts.snapshot.processes.get(finding.pid) if finding.pid is not None else None
    return task is not None and not task.ended and not os.path.exists(f"/proc/{task.pid}/root")


def _finding(rule: Rule, found: Found, facts: Facts) -> Finding:
    task = facts.snapshot.processes.get(found.pid) if found.pid is not None else None
    return Finding(
        rule=rule.name,
        severity=rule.severity if found.severity is None else found.severity,
        pid=found.pid,
        name=task.process.name if task else "",
        subject=found.subject,
        message=found.message,
        remedy=rule.remedy if found.remedy is None else found.remedy,
        option=rule.option if found.option is None else found.option,
    )
