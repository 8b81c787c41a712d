"""All rules over needs, in the order in which they are told; and how they are asked.

Rule: one that cannot read what it needs finds nothing, and does not keep the others from being asked.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Final

from ckpt.host.preflight import (
    needs_cpu,
    needs_files,
    needs_kernel,
    needs_network,
    needs_places,
    needs_room,
    needs_tasks,
)
from ckpt.host.preflight.needs_rule import Here, NeedRule
from ckpt.host.preflight.rule import Found
from ckpt.host.process_table import stat_of
from ckpt.model.findings import Finding, in_order
from ckpt.model.needs import Needs

NEED_RULES: Final[tuple[NeedRule, ...]] = (
    *needs_cpu.RULES,
    *needs_kernel.RULES,
    *needs_tasks.RULES,
    *needs_files.RULES,
    *needs_places.RULES,
    *needs_network.RULES,
    *needs_room.RULES,
)


def judge(needs: Needs, here: Here, rules: Iterable[NeedRule] = NEED_RULES) -> tuple[Finding, ...]:
    """Everything on this host that speaks against these needs, the gravest first."""
    found = {
        (finding.rule, finding.subject, finding.message): finding
        for rule in rules
        for finding in _ask(rule, needs, here)
    }
    return in_order(found.values())


def _ask(rule: NeedRule, needs: Needs, here: Here) -> Iterator[Finding]:
    with suppress(OSError):
        for found in rule.find(needs, here):
            yield _finding(rule, found)


def _finding(rule: NeedRule, found: Found) -> Finding:
    holder = stat_of(found.pid) if found.pid is not None else None
    return Finding(
        rule=rule.name,
        severity=rule.severity if found.severity is None else found.severity,
        pid=found.pid,
        name=holder.name if holder else "",
        subject=found.subject,
        message=found.message,
        remedy=rule.remedy if found.remedy is None else found.remedy,
        option="",
    )
