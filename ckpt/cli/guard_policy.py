"""A guard's policy as an operator writes it: a file of TOML, and the triggers of --at.

Rules:
- Whatever is not understood is an error that names the key and its line: a policy must not do half of what is meant.
- docs/guard.md has one example with every key; a test reads it.
"""

from __future__ import annotations

import re
import signal
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar

import click

from ckpt.cli.parameters import duration_above_zero, size
from ckpt.errors import CkptError, Usage
from ckpt.model.guard_steps import (
    AtOom,
    AtPsi,
    AtShare,
    KillVictim,
    MigrateAway,
    Notify,
    RaiseLimit,
    Reclaim,
    SendSignal,
    Step,
    StepName,
    TakeCheckpoint,
    Trigger,
)
from ckpt.model.guarding import (
    STEPS_MAX,
    Policy,
)

FILE_BYTES_MAX: Final = 256 << 10

_SHARE: Final = re.compile(r"(\d{1,3}(?:\.\d{1,3})?)%", re.ASCII)
_PSI: Final = re.compile(r"psi (some|full) (\S+)/(\S+)", re.ASCII)
_T = TypeVar("_T")

_KEYS: Final = frozenset(("at", "margin", "victims", "step"))
_STEP_KEYS: Final[dict[StepName, frozenset[str]]] = {
    StepName.NOTIFY: frozenset(("command", "timeout")),
    StepName.RECLAIM: frozenset(),
    StepName.RAISE: frozenset(("by", "up-to")),
    StepName.SIGNAL: frozenset(("signal", "wait")),
    StepName.CHECKPOINT: frozenset(("resume",)),
    StepName.MIGRATE: frozenset(("to", "options")),
    StepName.KILL: frozenset(),
}
_OF_ALL_STEPS: Final = frozenset(("do", "at"))


def trigger(text: str) -> Trigger:
    """The trigger that the text means: "90%", "oom", or "psi some 200ms/2s".

    Raises:
        Usage: it means none.
    """
    if text == "oom":
        return AtOom()
    if found := _SHARE.fullmatch(text):
        return AtShare(share=float(found[1]) / 100)
    if found := _PSI.fullmatch(text):
        return AtPsi(
            full=found[1] == "full",
            stall_ns=duration_above_zero(found[2]),
            window_ns=duration_above_zero(found[3]),
        )
    raise Usage(problem=f"'{text}' is no trigger: write 90%, oom, or 'psi some 200ms/2s'.")


def read_policy(path: str) -> Policy:
    """The policy in the file at this path.

    Raises:
        Usage: it cannot be read, or is none; names the key and the line.
    """
    try:
        with open(path, "rb") as stream:
            raw = stream.read(FILE_BYTES_MAX + 1)
        if len(raw) > FILE_BYTES_MAX:
            raise Usage(problem=f"The policy {path} is larger than {FILE_BYTES_MAX} bytes.")
        text = raw.decode()
        document = tomllib.loads(text)
    except OSError as error:
        raise Usage(problem=f"The policy {path} cannot be read: {error.strerror or error}.") from error
    except ValueError as error:  # what TOML does not allow, or is not UTF-8
        raise Usage(problem=f"The policy {path} is no TOML: {error}.") from error
    except RecursionError:
        raise Usage(
            problem=f"The policy {path} is no TOML that can be read: it is nested too deep."
        ) from None
    return _policy(_Part(path=path, lines=tuple(text.splitlines())), document)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """A part of the file, the step of this number or what stands before all: tomllib does not tell where a key stands."""

    path: str
    lines: tuple[str, ...]
    step: int = -1

    def line_of(self, key: str) -> int:
        """The line in which the key stands; 1 if it is not found."""
        at_step = -1
        for number, line in enumerate(self.lines, start=1):
            if re.match(r"\s*\[\[\s*step\s*\]\]", line):
                at_step += 1
            if at_step == self.step and re.match(rf"\s*\[*\s*[\"']?{re.escape(key)}[\"']?\s*[\]=.]", line):
                return number
        return 1

    def wrong(self, key: str, why: str) -> Usage:
        """The error that says what is wrong with a key."""
        return Usage(
            problem=f"{self.path}, line {self.line_of(key)}: '{key}' {why}",
            remedy="docs/guard.md has an example with every key.",
        )


def _policy(part: _Part, document: dict[str, Any]) -> Policy:
    for key in document:
        if key not in _KEYS:
            raise part.wrong(key, "is not a key of a policy.")
    given: dict[str, Any] = {}
    if "at" in document:
        given["at"] = _value(part, document, "at", str, trigger)
    if "margin" in document:
        given["margin"] = _value(part, document, "margin", str, _share)
    if "victims" in document:
        given["victims"] = _words(part, document, "victims")
    if "step" in document:
        steps = document["step"]
        if not isinstance(steps, list) or not all(isinstance(each, dict) for each in steps):
            raise part.wrong("step", "is a list of tables: write [[step]].")
        given["steps"] = tuple(_step(replace(part, step=number), each) for number, each in enumerate(steps))
    try:
        return Policy(**given)
    except Usage as error:
        key = "margin" if "margin" in given else "at"
        if not 1 <= len(given.get("steps", "1")) <= STEPS_MAX:
            key = "step"
        raise part.wrong(key, f"cannot be: {error.message}") from error


def _step(part: _Part, document: dict[str, Any]) -> Step:
    if "do" not in document:
        raise part.wrong("step", f"number {part.step + 1} does not say what to 'do'.")
    name = _value(part, document, "do", str, StepName)
    for key in document:
        if key not in _OF_ALL_STEPS | _STEP_KEYS[name]:
            raise part.wrong(key, f"is not a key of the step '{name}'.")

    def need(key: str, kind: type, read: Callable[[Any], _T]) -> _T:
        if key not in document:
            raise part.wrong("do", f"= '{name}' needs the key '{key}'.")
        return _value(part, document, key, kind, read)

    given: dict[str, Any] = {}
    if "at" in document:
        given["at"] = need("at", str, trigger)
    match name:
        case StepName.NOTIFY:
            if "timeout" in document:
                given["timeout_ns"] = need("timeout", str, duration_above_zero)
            need("command", list, len)
            return Notify(command=_words(part, document, "command"), **given)
        case StepName.RECLAIM:
            return Reclaim(**given)
        case StepName.RAISE:
            return RaiseLimit(by=need("by", str, size), up_to=need("up-to", str, size), **given)
        case StepName.SIGNAL:
            if "wait" in document:
                given["patience_ns"] = need("wait", str, duration_above_zero)
            return SendSignal(number=need("signal", str, _signal), **given)
        case StepName.CHECKPOINT:
            if "resume" in document:
                given["resume"] = need("resume", bool, bool)
            return TakeCheckpoint(**given)
        case StepName.MIGRATE:
            if "options" in document:
                given["options"] = _words(part, document, "options")
            return MigrateAway(host=need("to", str, _host), **given)
        case StepName.KILL:
            return KillVictim(**given)


def _value(
    part: _Part,
    document: dict[str, Any],
    key: str,
    kind: type,
    read: Callable[[Any], _T],
) -> _T:
    value = document[key]
    if type(value) is not kind:
        raise part.wrong(key, f"is a {type(value).__name__}, and must be a {kind.__name__}.")
    try:
        return read(value)
    except CkptError as error:
        raise part.wrong(key, f"= {value!r}: {error.message}") from error
    except click.BadParameter as error:
        raise part.wrong(key, f"= {value!r}: {error.message}") from error
    except ValueError as error:
        raise part.wrong(key, f"= {value!r} is none that ckpt knows.") from error


def _words(part: _Part, document: dict[str, Any], key: str) -> tuple[str, ...]:
    value = document[key]
    if not isinstance(value, list) or not value or not all(isinstance(each, str) and each for each in value):
        raise part.wrong(key, "is a list of words that are not empty.")
    if any("\0" in each for each in value):
        raise part.wrong(key, "has a word with a NUL, which no command can be given.")
    return tuple(value)


def _host(text: str) -> str:
    if not text or text.startswith("-") or "\0" in text:
        raise Usage(problem="it is no host: write [USER@]HOST[:PORT].")
    return text


def _share(text: str) -> float:
    found = _SHARE.fullmatch(text)
    if found is None or float(found[1]) >= 100:
        raise Usage(problem=f"'{text}' is no share: write 5%.")
    return float(found[1]) / 100


def _signal(text: str) -> int:
    try:
        return signal.Signals[f"SIG{text.removeprefix('SIG')}"].value
    except KeyError:
        raise Usage(problem=f"'{text}' is no signal: write USR1.") from None
