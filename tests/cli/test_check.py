"""Many findings of one rule are summed up for people; none is lost for programs."""

from __future__ import annotations

import pytest

from ckpt.cli.check import as_text
from ckpt.model.findings import ALIKE_MAX, Finding, Severity, few_of_each, told
from ckpt.units import Pid


def finding(rule: str, number: int, severity: Severity = Severity.BLOCKER) -> Finding:
    return Finding(
        rule=rule,
        severity=severity,
        pid=Pid(7),
        name="server",
        subject=f"fd {number}",
        message=f"process 7 (server) holds fd {number}",
        remedy="Close it.",
        option="",
    )


def many(count: int) -> tuple[Finding, ...]:
    return (*(finding("tcp-established", number) for number in range(count)), finding("io-uring", 9999))


def test_a_flood_of_one_rule_does_not_hide_another() -> None:
    text = as_text(many(1400))
    assert len(text.splitlines()) == 2 * ALIKE_MAX + 1 + 2 + 1
    assert "blocker  tcp-established: and 1395 more; --json names all." in text
    assert "io-uring: process 7 (server) holds fd 9999." in text
    assert text.endswith("1401 blocker(s), 0 warning(s), 0 info(s)")


@pytest.mark.parametrize("count", [0, 1, ALIKE_MAX])
def test_a_few_are_all_told(count: int) -> None:
    assert [more for _, more in few_of_each(many(count))] == [0] * (count + 1)
    assert "more" not in as_text(many(count))


def test_the_same_rule_with_another_severity_is_counted_by_itself() -> None:
    found = [*many(9), finding("tcp-established", 1, Severity.INFO)]
    assert [more for each, more in few_of_each(found) if each.severity is Severity.INFO] == [0]


def test_reasons_are_few_and_say_how_many_there_are() -> None:
    reasons = told(many(1400), lambda each: each.message)
    assert len(reasons) == ALIKE_MAX + 2
    assert reasons[ALIKE_MAX] == "and 1395 more of the rule tcp-established, which 'ckpt check --json' names"
