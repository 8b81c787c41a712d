"""The areas of a process's memory with what only /proc/PID/smaps tells: their flags and protection keys.

Rules:
- The text is read once and searched, not parsed line by line: a process has hundreds of lines for each area that matters.
- A reading walks the page tables, and takes as long as all else of a process: it is made of the first processes, and of
  those that lock memory, and of none that is so large that it would take a fifth of a second.
Source: proc_pid_smaps(5); proc_pid_status(5); fs/proc/task_mmu.c, show_smap_vma_flags().
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from ckpt.host.preflight.facts import Facts
from ckpt.units import Pid

_LINE: Final = re.compile(
    rb"^([0-9a-f]+)-([0-9a-f]+) [-r][-w][-x][ps] \S+ \S+ \d+ *([^\n]*)\n"
    rb"|^ProtectionKey: +([0-9]+)\n"
    rb"|^VmFlags: ([a-z0-9? ]+)\n",
    re.MULTILINE,
)
_READ_MAX: Final = 4
_WALKED_KIB_MAX: Final = 4 << 20
"""What a process may have in memory, or in swap: 1 GiB takes about 40 ms."""
_TABLES_KIB_MAX: Final = 128 << 10
"""The page tables that it may have: those of memory that is reserved and touched here and there take 1 ms a MiB."""
_AREAS_MAX: Final = 16_384
"""The areas that it may have: the kernel writes 700 bytes about each, and 10,000 take 90 ms."""
_TELLING: Final = frozenset(("um", "ui", "uw", "lf", "sl", "ss"))


@dataclass(frozen=True, slots=True, kw_only=True)
class FlaggedArea:
    """An area with one of the flags that a rule asks for, or a protection key."""

    start: int
    end: int
    path: str
    flags: frozenset[str]
    key: int

    @property
    def label(self) -> str:
        """How messages call it."""
        name = f" ({self.path})" if self.path else ""
        return f"{self.start:x}-{self.end:x}{name}"


def flagged_areas(facts: Facts) -> dict[Pid, tuple[FlaggedArea, ...]]:
    """By process, of those that have any; ask for it by `facts.once(flagged_areas)`."""
    found: dict[Pid, tuple[FlaggedArea, ...]] = {}
    for number, task in enumerate(facts.tasks):
        status = facts.status(task)
        if number >= _READ_MAX and status.get("VmLck", "").startswith("0 "):
            continue
        areas = facts.holdings(task).maps_text.count(b"\n")
        if areas > _AREAS_MAX or not is_soon_walked(status):
            continue
        with suppress(OSError), open(f"/proc/{task.pid}/smaps", "rb") as stream:
            if flagged := parse_smaps(stream.read()):
                found[task.pid] = flagged
    return found


def is_soon_walked(status: Mapping[str, str]) -> bool:
    """Whether the kernel has walked the memory of a process soon, of which this is /proc/PID/status."""
    held = _kib(status, "VmRSS") + _kib(status, "VmSwap")
    return held <= _WALKED_KIB_MAX and _kib(status, "VmPTE") <= _TABLES_KIB_MAX


def parse_smaps(text: bytes) -> tuple[FlaggedArea, ...]:
    """The areas of the text of /proc/PID/smaps that a rule may ask for."""
    found: list[FlaggedArea] = []
    start, end, path, key = 0, 0, b"", 0
    for first, last, name, number, flags in _LINE.findall(text):
        if first:
            start, end, path, key = int(first, 16), int(last, 16), name, 0
        elif number:
            key = int(number)
        elif key or not _TELLING.isdisjoint(flags.decode().split()):
            found.append(
                FlaggedArea(
                    start=start,
                    end=end,
                    path=path.decode(errors="replace"),
                    flags=frozenset(flags.decode().split()),
                    key=key,
                )
            )
    return tuple(found)


def _kib(status: Mapping[str, str], name: str) -> int:
    number, _, unit = status.get(name, "").partition(" ")
    return int(number) if unit == "kB" else 0
