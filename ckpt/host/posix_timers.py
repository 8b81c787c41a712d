"""POSIX timers that were set to a time of the wall clock.

Nobody tells: neither /proc/PID/timers, nor timer_gettime(2), and so not CRIU. But the kernel keeps a timer of
CLOCK_REALTIME that was set to a time on that clock, and one that was set for a span on CLOCK_MONOTONIC, and
/proc/timer_list has the end of each to the nanosecond. What remained of the timers of a task was read by CRIU all at
once: how late that was, with regard to the list, is the same for all of them, and tells which entries are theirs.

Rule: what fits both clocks is not known, and then it counts as a span.
Source: kernel/time/posix-timers.c, common_hrtimer_arm; kernel/time/hrtimer.c, hrtimer_clockid_to_base.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, NamedTuple

from ckpt.host import timer_list
from ckpt.units import MILLISECOND, Nanoseconds, Pid

_REALTIME: Final = 0
_TAI: Final = 11
WALL: Final = {_REALTIME: "realtime", _TAI: "tai"}
"""The clocks that can be set, and the kernel's clock for a time of them."""

_KEPT_ON: Final = {_REALTIME: ("monotonic", "realtime"), 1: ("monotonic",), 7: ("boottime",), _TAI: ("tai",)}
"""By the clock of a timer, the clocks on which the kernel may keep it."""

_EARLIEST_NS: Final = -20 * MILLISECOND
_LATEST_NS: Final = 40 * MILLISECOND
"""How late what remained may have been read: it is told by the times of files, which go on by ticks."""

_UNLIKE_NS: Final = MILLISECOND
"""An entry that is further away from a timer is not its own."""

_ALIKE_NS: Final = 50_000
"""Explanations that differ by less are as good as one another: CRIU takes a microsecond for each timer."""

_TIMERS_MAX: Final = 1000
_TRIED: Final = 4
_TRIED_ENDS: Final = 16
_NEIGHBOURS: Final = 4
"""So many timers of a task are looked at, so many of them tell how late they may have been read, by so many entries
each, and so many entries next to a time may belong to other timers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PosixEnds:
    """What remained of every POSIX timer on this machine at one instant, sorted, by the clock that it is kept on."""

    monotonic: tuple[int, ...] = ()
    realtime: tuple[int, ...] = ()
    boottime: tuple[int, ...] = ()
    tai: tuple[int, ...] = ()

    def on(self, clock: str) -> tuple[int, ...]:
        """Those of one clock."""
        return {
            "monotonic": self.monotonic,
            "realtime": self.realtime,
            "boottime": self.boottime,
            "tai": self.tai,
        }[clock]

    def has(self, clock: int, left_ns: int) -> bool:
        """Whether something was set to the time of this wall clock that is so far, to the nanosecond."""
        ends = self.on(WALL[clock]) if clock in WALL else ()
        at = bisect_left(ends, left_ns)
        return at < len(ends) and ends[at] == left_ns


NO_ENDS: Final = PosixEnds()


def may_be_of_the_wall_clock(pids: Iterable[Pid]) -> bool:
    """Whether a process has a POSIX timer on a clock that can be set."""
    return any(timer.clock in WALL for pid in pids for timer in timers_of(pid))


class PosixTimer(NamedTuple):
    """A POSIX timer as /proc shows it."""

    number: int
    clock: int


def timers_of(pid: Pid) -> Iterator[PosixTimer]:
    """The POSIX timers of a process; none if it has ended."""
    number = 0
    with suppress(OSError), open(f"/proc/{pid}/timers", encoding="ascii", errors="replace") as stream:
        for line in stream:
            name, _, value = line.partition(":")
            if name == "ID":
                number = int(value)
            elif name == "ClockID":
                yield PosixTimer(number=number, clock=int(value))


def ends_in(text: bytes, at_ns: Nanoseconds) -> PosixEnds:
    """What remained at `at_ns`, on our CLOCK_MONOTONIC, of the POSIX timers in a list that timer_list.read() gave."""
    found: dict[str, list[int]] = {"monotonic": [], "realtime": [], "boottime": [], "tai": []}
    for timer in timer_list.timers_calling(b"posix_timer_fn", text):
        found[timer.clock].append(timer.due_ns - at_ns)
    return PosixEnds(**{clock: tuple(sorted(left)) for clock, left in found.items()})


def wall_clock_ends(timers: Sequence[tuple[int, int]], ends: PosixEnds) -> dict[int, int]:
    """Those timers of a task that were set to a time of the wall clock: what remained of them, by their place.

    Args:
        timers: The clock of each armed timer, and what remained of it, all of them too late by about the same.
        ends: What remained in truth, of these and of all others.
    """
    timers = timers[:_TIMERS_MAX]
    if not any(clock in WALL and ends.on(WALL[clock]) for clock, _ in timers):
        return {}
    explained = [_explain(timers, ends, late_ns) for late_ns in _possible_lates(timers, ends)]
    least_ns = min((cost_ns for cost_ns, _ in explained), default=0)
    best = [set(found.items()) for cost_ns, found in explained if cost_ns <= least_ns + _ALIKE_NS]
    return dict(set.intersection(*best)) if best else {}


def _possible_lates(timers: Sequence[tuple[int, int]], ends: PosixEnds) -> Iterator[int]:
    for clock, left_ns in [timer for timer in timers if timer[0] in WALL][:_TRIED]:
        for kept_on in _KEPT_ON[clock]:
            of_clock = ends.on(kept_on)
            first = bisect_left(of_clock, left_ns - _LATEST_NS)
            last = bisect_left(of_clock, left_ns - _EARLIEST_NS)
            yield from (left_ns - end_ns for end_ns in of_clock[first:last][-_TRIED_ENDS:])


def _explain(timers: Sequence[tuple[int, int]], ends: PosixEnds, late_ns: int) -> tuple[int, dict[int, int]]:
    """How badly the list fits if all timers were read so late, and which of them are of the wall clock then."""
    cost_ns = 0
    found: dict[int, int] = {}
    taken: set[tuple[str, int]] = set()
    # Those that can be on one clock only leave to the others what is not theirs.
    for place in sorted(range(len(timers)), key=lambda place: len(_KEPT_ON.get(timers[place][0], ()))):
        clock, late_left_ns = timers[place]
        nearest = {
            kept_on: _nearest(ends.on(kept_on), late_left_ns - late_ns, kept_on, taken)
            for kept_on in _KEPT_ON.get(clock, ())
        }
        if not nearest:
            continue
        kept_on, (off_ns, at) = min(nearest.items(), key=lambda item: item[1])
        cost_ns += min(off_ns, _UNLIKE_NS)
        if off_ns < _UNLIKE_NS:
            taken.add((kept_on, at))
            others = [other_ns for other, (other_ns, _) in nearest.items() if other != kept_on]
            if kept_on == WALL.get(clock) and all(off_ns + _ALIKE_NS < other_ns for other_ns in others):
                found[place] = ends.on(kept_on)[at]
    return cost_ns, found


def _nearest(ends: tuple[int, ...], left_ns: int, clock: str, taken: set[tuple[str, int]]) -> tuple[int, int]:
    """How far the nearest entry is away that is not taken, and its place."""
    at = bisect_left(ends, left_ns)
    near = range(max(0, at - _NEIGHBOURS), min(len(ends), at + _NEIGHBOURS))
    return min(
        ((abs(ends[place] - left_ns), place) for place in near if (clock, place) not in taken),
        default=(_UNLIKE_NS, -1),
    )
