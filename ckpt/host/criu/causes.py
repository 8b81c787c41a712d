"""From the lines of CRIU's log to a cause in plain words and a remedy.

Rules: the rows are tried for each error in the order of the log, so that the first error that is understood
is the cause. Where the log has no error, the warnings and its last lines are tried: some failures are
announced only there. What is not understood gives CRIU's own last words, never a bare "failed".
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from ckpt.host.criu.failures import ROWS
from ckpt.host.criu.log import LogReading

_PREFIX: Final = re.compile(r"^(?:\([\d.]+\)\s*)?(?:pie: )?(?:\d+: )?(?:(?:Error|Warn ) ?\([^)]*\):\s*)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """Why CRIU failed: `known` says whether a row explained it; `lines` are those of the log that say so."""

    cause: str
    remedy: str
    lines: tuple[str, ...]
    known: bool


def explain(log: LogReading, message: str = "") -> Diagnosis:
    """Why CRIU failed, from its log and the `message` that it answered, which may be empty."""
    for line in log.errors or (*log.warnings, *log.tail, *message.splitlines()):
        for row in ROWS:
            match = row.line.search(line)
            if match is not None:
                said = {name: value or "" for name, value in match.groupdict().items()}
                return Diagnosis(
                    cause=row.cause.format_map(said),
                    remedy=row.remedy.format_map(said),
                    lines=_with(log.evidence, line),
                    known=True,
                )
    return _unknown(log, message)


def _unknown(log: LogReading, message: str) -> Diagnosis:
    if log.errors:
        cause = f"CRIU says: {_bare(log.errors[0])}"
    elif log.tail:
        cause = f"CRIU gave no reason; its log ends with: {_bare(log.tail[-1])}"
    else:
        words = [line for line in message.splitlines() if line.strip()]
        return Diagnosis(
            cause=f"CRIU says: {_bare(words[0])}" if words else "CRIU gave no reason, and wrote no log",
            remedy="",
            lines=tuple(words[:8]),
            known=False,
        )
    return Diagnosis(
        cause=cause,
        remedy=f"The log {log.path} has the details." if log.tail else "",
        lines=log.evidence,
        known=False,
    )


def _with(lines: tuple[str, ...], line: str) -> tuple[str, ...]:
    return lines if line in lines else (*lines, line)


def _bare(line: str) -> str:
    return _PREFIX.sub("", line).strip()
