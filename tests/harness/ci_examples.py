"""The examples of docs/ci.md: the shell part of each, as its CI would run it."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

DOCUMENT = Path(__file__).parents[2] / "docs/ci.md"

_BLOCK = re.compile(
    r"^## (?P<name>[^\n]+)\n+```(?P<kind>yaml|groovy)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)
_YAML_SCRIPT = re.compile(
    r"^(?P<indent> *)(?:run: |- )\|\n(?P<text>(?:(?P=indent) +[^\n]*\n|\n)+)", re.MULTILINE
)
_GROOVY_SCRIPT = re.compile(r"script: '''\n(?P<text>.*?)'''", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One CI: its name, and the shell text that it runs."""

    name: str
    script: str


def examples() -> list[Example]:
    """All of the document.

    Raises:
        AssertionError: one has not exactly one shell part.
    """
    found = []
    for block in _BLOCK.finditer(DOCUMENT.read_text()):
        pattern = {"yaml": _YAML_SCRIPT, "groovy": _GROOVY_SCRIPT}[block["kind"]]
        texts = [match["text"] for match in pattern.finditer(block["text"])]
        assert len(texts) == 1, block["name"]
        # Groovy joins lines, and takes away backslashes.
        assert block["kind"] == "yaml" or "\\" not in texts[0]
        found.append(Example(name=block["name"], script=textwrap.dedent(texts[0])))
    return found
