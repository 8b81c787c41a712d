"""Leave out of a text what users would not show to strangers: command lines, environments, passphrases.

Rules: what is to be left out is known by where it was found: the words of a command line but the first, the values of
an environment. Wherever such a word stands in another text, it is masked there. Short words, numbers, and paths of
files that are there say nothing secret, and a log without them says nothing at all: they stay. What is named as a
passphrase, a token or a key is masked always.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Final

from ckpt.units import Pid

MASK: Final = "[left out]"
ENVIRONMENT_BYTES_MAX: Final = 1 << 20
_WORD_CHARS_MIN: Final = 6
_NAMES_A_SECRET: Final = re.compile(
    r"pass(?:wd|word|phrase)?(?![a-z])|secret|token|(?<![a-z])(?:api_?)?keys?(?![a-z])|credential|cookie|auth",
    re.IGNORECASE,
)
_DOUBTFUL: Final = re.compile(
    r"((?:pass(?:wd|word|phrase)?|secret|token|credentials?)\s*[=:]\s*)[^\s,;&\"']+", re.IGNORECASE
)
_PLAIN: Final = re.compile(r"[0-9.:,/+-]*|true|false|default|unconfined")


def command_line(words: Sequence[str]) -> tuple[str, ...]:
    """The words, with the values of options masked that name a secret: --token X, --password=X, TOKEN=X."""
    return tuple(
        word if secret is None else f"{word.removesuffix(secret)}{MASK}"
        for word, secret in _with_secrets(words)
    )


def environment_of(pid: Pid | str) -> tuple[str, ...]:
    """The environment that the process was started with, "NAME=value" each; nothing if it cannot be read."""
    with suppress(OSError), open(f"/proc/{pid}/environ", "rb") as stream:
        content = stream.read(ENVIRONMENT_BYTES_MAX)
        return tuple(os.fsdecode(each) for each in content.split(b"\0") if b"=" in each)
    return ()


class Masking:
    """Words that are masked wherever they stand."""

    def __init__(self) -> None:
        self._words: set[str] = set()

    def add_command_line(self, words: Sequence[str]) -> None:
        """Mask every word but the first, and the values in words like --name=value."""
        for word in words[1:]:
            self._add(word)
            self._add(word.partition("=")[2])

    def add_environment(self, variables: Iterable[str]) -> None:
        """Mask every value."""
        for variable in variables:
            self._add(variable.partition("=")[2])

    def add_passphrases(self, words: Iterable[str]) -> None:
        """Mask only what a command line or an environment names as a secret."""
        for _, secret in _with_secrets(words):
            if secret is not None:
                self._add(secret)

    def masked(self, text: str) -> str:
        """The text without the words, and without what follows "password=" and the like."""
        # Longer ones first: a word may be part of another.
        for word in sorted(self._words, key=len, reverse=True):
            text = text.replace(word, MASK)
        return _DOUBTFUL.sub(rf"\1{MASK}", text)

    def _add(self, word: str) -> None:
        if len(word) < _WORD_CHARS_MIN or _PLAIN.fullmatch(word):
            return
        if word.startswith("/") and os.path.exists(word):
            return
        # As it stands in JSON, too.
        self._words |= {word, json.dumps(word)[1:-1]}


def _with_secrets(words: Iterable[str]) -> Iterator[tuple[str, str | None]]:
    """Each word with its end that is a secret; None where it has none."""
    is_next = False
    for word in words:
        name, equals, value = word.partition("=")
        if is_next:
            yield word, word
            is_next = False
        else:
            named = _NAMES_A_SECRET.search(name) is not None
            yield word, value if equals and named else None
            is_next = named and not equals and word.startswith("-")
