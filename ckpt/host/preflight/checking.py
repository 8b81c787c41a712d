"""Ask the rules.

Rules: one that cannot read what it needs finds nothing, and does not keep the others from being asked. What was found
of a process that has ended meanwhile is not told.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from typing import Final

from ckpt.host.preflight.facts import Facts
from ckpt.host.preflight.rule import Found, Rule, When
from ckpt.host.preflight.table import RULES
from ckpt.model.findings import Finding, in_order

EVER: Final = frozenset(When)
CHECKED: Final = frozenset((When.BEFORE, When.ALWAYS, When.CHECK))
BEFORE_FREEZE: Final = frozenset((When.BEFORE, When.ALWAYS))
LASTING_UNDER_FREEZE: Final = frozenset((When.ALWAYS,))
PASSING: Final = frozenset((When.MOMENT,))


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


def _ask(rule: Rule, facts: Facts) -> Iterator[Finding]:
    with suppress(OSError):
        for found in rule.find(facts):
            yield _finding(rule, found, facts)


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
