"""What a rule over needs is: a function that compares one need with this host.

Rules for rules: those of rule.py; what is found is what a real restore does (tests/system/test_check_ref.py). A rule
must take any needs that its types allow: they may come from another host.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

from ckpt.host.preflight.rule import Found
from ckpt.model.findings import Severity
from ckpt.model.needs import Needs

Made = TypeVar("Made")


@dataclass(frozen=True, slots=True, kw_only=True)
class Here:
    """This host for one judgement: the state directory with the staging area, and the store's, which need not exist."""

    state: str
    store: str
    _made: dict[object, Any] = field(default_factory=dict, compare=False, repr=False)

    def once(self, make: Callable[[Needs, Here], Made], needs: Needs) -> Made:
        """What `make` gives for these needs; it is called the first time only."""
        if make not in self._made:
            self._made[make] = make(needs, self)
        made: Made = self._made[make]
        return made


@dataclass(frozen=True, slots=True, kw_only=True)
class NeedRule:
    """A rule over needs.

    `title` and `effect` are for docs/check-host.md: what it looks for, and what happens without it. An option of a
    restore that deals with it stands in the remedy.
    """

    name: str
    severity: Severity
    title: str
    effect: str
    remedy: str
    find: Callable[[Needs, Here], Iterator[Found]]
