"""What a rule is: a function that looks for one thing, and all that people are told of it.

Rules for rules:
- What stands here was seen with a real dump and a real restore (tests/system/test_rules_*.py): a blocker fails or
  loses the workload, and what is not found can be dumped and restored.
- A message names the process and the object; it is a sentence without its period. A remedy is whole sentences.
- A process or a descriptor that is gone meanwhile is no finding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from ckpt.model.findings import Severity
from ckpt.units import Pid

if TYPE_CHECKING:
    from ckpt.host.inspection.holdings import Hold
    from ckpt.host.inspection.processes import ProcessFacts
    from ckpt.host.preflight.facts import Facts


class When(Enum):
    """When a rule is asked.

    `BEFORE`: while the workload runs; a reading that lasts, or that costs too much for a freeze. `ALWAYS`: again
    under the freeze: it costs no system call there, or a few. `MOMENT`: what it finds passes by itself, so that a
    dump lets the workload go on and tries again; asked under the freeze.
    """

    BEFORE = "before"
    ALWAYS = "always"
    CHECK = "check"
    MOMENT = "moment"


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """One thing that a rule found; what is None is as the rule has it."""

    pid: Pid | None
    subject: str
    message: str
    severity: Severity | None = None
    remedy: str | None = None
    option: str | None = None


Find = Callable[["Facts"], Iterator[Found]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A rule.

    `title` and `effect` are for docs/rules.md: what it looks for, and what happens without it. `option` is ours that
    deals with it. `source` is where the knowledge is from.
    """

    name: str
    severity: Severity
    title: str
    effect: str
    remedy: str
    source: str
    find: Find
    option: str = ""
    when: When = When.BEFORE


def of_each_task(find: Callable[[Facts, ProcessFacts], Iterator[Found]]) -> Find:
    """A rule over the processes that have not ended, one after another."""

    def find_all(facts: Facts) -> Iterator[Found]:
        for task in facts.tasks:
            # It has ended meanwhile, for which the kernel has several errors; the others have not.
            with suppress(OSError):
                yield from find(facts, task)

    return find_all


def of_each_descriptor(find: Callable[[Facts, ProcessFacts, Hold], Iterator[Found]]) -> Find:
    """A rule over the open descriptors of the processes that have not ended."""

    def find_all(facts: Facts) -> Iterator[Found]:
        for task in facts.tasks:
            for hold in facts.descriptors(task):
                with suppress(OSError):
                    yield from find(facts, task, hold)

    return find_all
