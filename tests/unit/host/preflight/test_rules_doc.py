"""The document of the rules is what the rules say, and every rule says all that it must."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ckpt.host.preflight.rule import Rule
from ckpt.host.preflight.table import RULES

HOUSE = Path(__file__).parents[4]


def test_the_document_is_current() -> None:
    command = [sys.executable, HOUSE / "scripts/lib/rules_document.py", "--check"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=HOUSE)
    assert done.returncode == 0, done.stderr


def test_names_are_unique() -> None:
    names = [rule.name for rule in RULES]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_a_rule_tells_all_that_people_need(rule: Rule) -> None:
    assert rule.name == rule.name.lower().replace(" ", "-").replace("_", "-")
    assert rule.title
    assert rule.effect
    assert rule.remedy == "" or rule.remedy.endswith(".")
    assert rule.source
    assert rule.option == "" or rule.option.startswith("--")
