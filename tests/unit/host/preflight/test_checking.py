"""How rules are asked: each finding once, the gravest first, whatever one of them cannot read."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from ckpt.host.inspection.processes import ProcessFacts
from ckpt.host.inspection.snapshot import Snapshot
from ckpt.host.preflight import checking
from ckpt.host.preflight.facts import Facts
from ckpt.host.preflight.rule import Find, Found, Rule, When, of_each_task
from ckpt.model.checkpoint import DumpOptions
from ckpt.model.findings import Severity, blockers
from ckpt.model.workload import Process
from ckpt.units import Pid

BLOCKER, WARNING, INFO = Severity.BLOCKER, Severity.WARNING, Severity.INFO


def process(pid: int, *, ended: bool = False) -> ProcessFacts:
    return ProcessFacts(
        process=Process(
            pid=Pid(pid),
            pid_inside=Pid(pid),
            parent=Pid(1),
            name=f"program{pid}",
            state="Z" if ended else "S",
            threads=(Pid(pid),),
            command_line=(),
            uid=0,
            gid=0,
            capabilities=0,
            seccomp=0,
            cgroup="",
        ),
        tracer=Pid(0),
        deadline=False,
        children=(),
        namespaces={} if ended else {"pid": 1},
        executable="",
    )


def facts_of(*processes: ProcessFacts) -> Facts:
    snapshot = Snapshot(processes={each.pid: each for each in processes}, holdings={}, trees=(), strays=())
    return Facts(snapshot, DumpOptions(), "")


def rule(find: Find, name: str = "rule", severity: Severity = BLOCKER, when: When = When.BEFORE) -> Rule:
    return Rule(
        name=name, severity=severity, title="it", effect="Fails.", remedy="Mend it.", source="here", find=find,
        option="--it", when=when,
    )  # fmt: skip


def always(*found: Found) -> Find:
    return lambda _facts: iter(found)


def found(subject: str = "it", pid: int | None = None, **more: object) -> Found:
    return Found(
        pid=None if pid is None else Pid(pid), subject=subject, message=f"{subject} is there", **more
    )  # type: ignore[arg-type]


def test_a_finding_has_what_its_rule_says_unless_it_says_otherwise() -> None:
    own = os.getpid()
    asked = rule(always(found("a", own), found("b", severity=INFO, remedy="", option="")))
    plain, other = checking.check(facts_of(process(own)), rules=[asked])
    assert (plain.rule, plain.severity, plain.pid, plain.name) == ("rule", BLOCKER, own, f"program{own}")
    assert (plain.remedy, plain.option) == ("Mend it.", "--it")
    assert plain.sentence == "a is there. Mend it."
    assert (other.severity, other.pid, other.name, other.remedy, other.option) == (INFO, None, "", "", "")
    assert other.sentence == "b is there."
    assert blockers((plain, other)) == (plain,)


def test_the_gravest_come_first_and_else_the_order_of_the_table() -> None:
    rules = [
        rule(always(found()), "info", INFO),
        rule(always(found()), "first", BLOCKER),
        rule(always(found()), "warning", WARNING),
        rule(always(found()), "second", BLOCKER),
    ]
    findings = checking.check(facts_of(), rules=rules)
    assert [finding.rule for finding in findings] == ["first", "second", "warning", "info"]


def test_what_is_shared_is_told_once() -> None:
    assert len(checking.check(facts_of(), rules=[rule(always(found(), found(), found("other")))])) == 2


def test_a_rule_that_cannot_read_keeps_what_it_found_and_the_others_are_asked() -> None:
    def breaks(_facts: Facts) -> Iterator[Found]:
        yield found("before")
        raise PermissionError

    findings = checking.check(facts_of(), rules=[rule(breaks, "one"), rule(always(found()), "two")])
    assert [(finding.rule, finding.subject) for finding in findings] == [("one", "before"), ("two", "it")]


@pytest.mark.parametrize(
    "error", [KeyError("NSpid"), ValueError("odd\ntext"), RecursionError(), OSError(5, "it")]
)
def test_a_rule_with_a_bug_fails_nothing_and_is_told(error: Exception) -> None:
    def breaks(_facts: Facts) -> Iterator[Found]:
        yield found("before")
        raise error

    findings = checking.check(facts_of(), rules=[rule(breaks, "one"), rule(always(found()), "two")])
    assert [finding.subject for finding in blockers(findings)] == ["before", "it"]
    told = findings[2:]
    assert checking.unasked(findings) == told
    if isinstance(error, OSError):
        assert told == ()
    else:
        assert [(finding.rule, finding.severity) for finding in told] == [("one", WARNING)]
        assert told[0].message.startswith(f"the rule one could not be asked: {type(error).__name__}: ")
        assert "(test_checking.py, line " in told[0].message
        assert "\n" not in told[0].message


def test_a_process_that_ends_meanwhile_hides_no_other() -> None:
    def of_task(_facts: Facts, task: ProcessFacts) -> Iterator[Found]:
        if task.pid == 1:
            raise ProcessLookupError
        yield found(task.label)

    living = facts_of(process(1), process(2), process(3, ended=True))
    findings = checking.check(living, rules=[rule(of_each_task(of_task))])
    assert [finding.subject for finding in findings] == ["process 2 (program2)"]


def test_only_the_rules_for_the_moment_are_asked() -> None:
    rules = [rule(always(found()), when.name, when=when) for when in When]

    def asked(when: frozenset[When]) -> list[str]:
        return [finding.rule for finding in checking.check(facts_of(), when, rules)]

    assert asked(checking.EVER) == ["BEFORE", "ALWAYS", "CHECK", "MOMENT"]
    assert asked(checking.CHECKED) == ["BEFORE", "ALWAYS", "CHECK"]
    assert asked(checking.BEFORE_FREEZE) == ["BEFORE", "ALWAYS"]
    assert asked(checking.LASTING_UNDER_FREEZE) == ["ALWAYS"]
    assert asked(checking.PASSING) == ["MOMENT"]


def test_a_thing_is_read_once() -> None:
    calls = []

    def make(_facts: Facts) -> int:
        calls.append(1)
        return 5

    facts = facts_of()
    assert [facts.once(make), facts.once(make)] == [5, 5]
    assert len(calls) == 1


def test_what_was_found_of_a_process_that_ended_meanwhile_is_not_told() -> None:
    gone = 1 << 22  # above all pids
    asked = rule(always(found("of it", gone), found("of none")))
    findings = checking.check(facts_of(process(gone)), rules=[asked])
    assert [finding.subject for finding in findings] == ["of none"]
