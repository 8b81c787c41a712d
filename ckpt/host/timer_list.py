"""/proc/timer_list: when the timers of high resolution on this machine end, and on which clock, but not whose they are.

Rule: where the kernel does not show it, there are none.
Source: kernel/time/timer_list.c, include/linux/hrtimer_defs.h.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from ckpt.host.timens import offsets_of
from ckpt.units import Nanoseconds

_NOW: Final = re.compile(rb"^now at (\d+) nsecs$", re.MULTILINE)
_INDEX: Final = re.compile(rb"^ *\.index: +(\d+)$")
_OFFSET: Final = re.compile(rb"^ *\.offset: +(\d+) nsecs$")
_NAME: Final = re.compile(rb"^ #\d+: <[^>]*>, (\w+), ")
_EXPIRES: Final = re.compile(rb"^ # expires at (\d+)-")

_CLOCKS: Final = ("monotonic", "realtime", "boottime", "tai")
"""By the kernel's index; the same again, 4 higher, for timers that expire in softirqs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedTimer:
    """A timer. `clock` is the clock that its end was set on, `due_ns` its end on our CLOCK_MONOTONIC."""

    clock: str
    due_ns: Nanoseconds


def read() -> bytes:
    """The list as it is now; empty where the kernel shows none."""
    with suppress(OSError), open("/proc/timer_list", "rb") as stream:
        return stream.read()
    return b""


def taken_at(text: bytes) -> Nanoseconds | None:
    """When a list was read, on our CLOCK_MONOTONIC; None if it is empty."""
    now = _NOW.search(text)
    return None if now is None else Nanoseconds(int(now[1]) + _ours_ns())


def timers_calling(function: bytes, text: bytes) -> Iterator[ListedTimer]:
    """The timers of a list that call this function of the kernel when they expire."""
    ours_ns = _ours_ns()
    clock, offset_ns, is_wanted = _CLOCKS[0], 0, False
    for line in text.splitlines():
        if found := _EXPIRES.match(line):
            if is_wanted:
                yield ListedTimer(clock=clock, due_ns=Nanoseconds(int(found[1]) - offset_ns + ours_ns))
        elif found := _NAME.match(line):
            is_wanted = found[1] == function
        elif found := _OFFSET.match(line):
            offset_ns = int(found[1])
        elif found := _INDEX.match(line):
            clock = _CLOCKS[int(found[1]) % len(_CLOCKS)]


def _ours_ns() -> int:
    # The kernel tells its own time, which may not be that of our namespace.
    return offsets_of("self").monotonic_ns
