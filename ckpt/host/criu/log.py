"""CRIU's log, read in bounded memory: its errors, what stands around them, and how it ends.

Rules: a log may be of any size (a restore that spins writes 18 MB/s): at most HEAD_BYTES from its beginning,
where the first error stands, and TAIL_BYTES from its end are read, and lines are cut at LINE_CHARS. Lines
that look like errors and say nothing about the cause are noise, by name.
Source: criu/log.c (the form of a line); the noise was collected from runs that succeeded.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

HEAD_BYTES: Final = 16 << 20
TAIL_BYTES: Final = 256 << 10
LINE_CHARS: Final = 400
ERRORS_MAX: Final = 200
CONTEXT_LINES: Final = 3
TAIL_LINES: Final = 8

_ERROR: Final = re.compile(r"\bError \([^)]*\): |\bError: |^criu: error ")
_WARNING: Final = re.compile(r"\bWarn  ?\([^)]*\): ")

NOISE: Final = tuple(
    re.compile(pattern)
    for pattern in (
        # CRIU tries to raise its own limit; without CAP_SYS_RESOURCE that fails, and nothing depends on it.
        r"rlimit: Can't setup RLIMIT_NOFILE for self",
        # `ip addr restore` into a namespace that has the address of its loopback device already.
        r"Error: ipv4: Address already assigned",
        # The programs of iptables are called for also where nftables does the work.
        r'execvp\("ip6?tables[^"]*"',
        r"Dumping FAILED|Restoring FAILED",
        # Follow-ups of a failure, never its cause.
        r"Dump files \(pid",
        r"Unable to open fd=",
        r"exited, status=",
        r"Unable to detach from \d+: No such process",
        r"RPC client reported script error",
        r"One of more action scripts failed",
        r"Can't kill \d+: No such process",
    )
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LogReading:
    """What a log says: `errors` and `warnings` in their order, noise left out.

    `around` are the lines up to and with the first error; `tail` are the last lines.
    """

    path: Path
    errors: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    around: tuple[str, ...] = ()
    tail: tuple[str, ...] = ()

    @property
    def evidence(self) -> tuple[str, ...]:
        """The lines to show to people: the first error with what led to it, or else how the log ends."""
        return (*self.around, *self.errors[1:4]) if self.errors else self.tail


def read_log(path: Path) -> LogReading:
    """Read a log; one that is missing or unreadable reads as an empty one."""
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
            size = file.seek(0, 2)
            file.seek(max(0, size - TAIL_BYTES))
            tail = file.read(TAIL_BYTES)
    except OSError:
        return LogReading(path=path)
    head_lines = _lines(head)
    tail_lines = _lines(tail)
    if size > len(head):
        # The first line of the tail is cut off somewhere.
        head_lines += [line for line in tail_lines[1:] if _ERROR.search(line)]
    return LogReading(
        path=path,
        errors=_select(_ERROR, head_lines),
        warnings=_select(_WARNING, head_lines),
        around=_around_first_error(head_lines),
        tail=tuple(tail_lines[-TAIL_LINES:]),
    )


def _lines(content: bytes) -> list[str]:
    text = content.decode("utf-8", errors="replace").replace("\0", "")
    return [line[:LINE_CHARS] for line in text.splitlines() if line.strip()]


def _is_noise(line: str) -> bool:
    return any(pattern.search(line) for pattern in NOISE)


def _select(kind: re.Pattern[str], lines: list[str]) -> tuple[str, ...]:
    return tuple(line for line in lines if kind.search(line) and not _is_noise(line))[:ERRORS_MAX]


def _around_first_error(lines: list[str]) -> tuple[str, ...]:
    for number, line in enumerate(lines):
        if _ERROR.search(line) and not _is_noise(line):
            return tuple(lines[max(0, number - CONTEXT_LINES) : number + 1])
    return ()
