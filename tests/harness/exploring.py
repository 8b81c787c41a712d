"""Visit every state of a migration's world, and say how the first wrong one is reached."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from harness.migration_world import Law, Violation, World, check, faults, is_settled, steps

from ckpt.errors import WrongState


@dataclass(frozen=True, slots=True, kw_only=True)
class Explored:
    """How many states and steps there are, and how many of them are settled; `wrong` is "" if all is well."""

    states: int
    steps: int
    settled: int
    wrong: str
    trace: tuple[str, ...]


def explore(begin: World, law: Law | None = None) -> Explored:
    """Visit all that can be reached, the nearest first, until something is wrong.

    Each state keeps the laws (migration_world.check), and from each a settled one is reached without another fault,
    by the source's recovery alone where the source still knows the migration.
    """
    law = law or Law()
    numbers = {begin: 0}
    worlds = [begin]
    came_from: list[tuple[int, str]] = [(0, "")]
    faultless: list[list[int]] = [[]]  # who leads here without a fault
    waiting = deque([0])
    count = 0

    def found(wrong: str, at: int) -> Explored:
        trace: list[str] = []
        while at:
            at, name = came_from[at]
            trace.append(name)
        settled = sum(map(is_settled, worlds))
        return Explored(
            states=len(worlds), steps=count, settled=settled, wrong=wrong, trace=tuple(reversed(trace))
        )

    while waiting:
        at = waiting.popleft()
        world = worlds[at]
        try:
            check(world)
            nexts = [
                (name, after, name != "target recover" or world.source_seen is None)
                for name, after in steps(world, law)
            ]
            nexts += [(*step, False) for step in faults(world)]
        except (Violation, WrongState) as error:
            return found(str(error), at)
        for name, after, is_faultless in nexts:
            count += 1
            number = numbers.get(after)
            if number is None:
                number = numbers[after] = len(worlds)
                worlds.append(after)
                came_from.append((at, name))
                faultless.append([])
                waiting.append(number)
            if is_faultless:
                faultless[number].append(at)
    stuck = _never_settling(worlds, faultless)
    return (
        found("no settled state can be reached without another fault", stuck)
        if stuck is not None
        else found("", 0)
    )


def _never_settling(worlds: list[World], faultless: list[list[int]]) -> int | None:
    """The first state from which no settled one is reached; None if there is none."""
    good = bytearray(len(worlds))
    waiting = [number for number, world in enumerate(worlds) if is_settled(world)]
    for number in waiting:
        good[number] = 1
    while waiting:
        for before in faultless[waiting.pop()]:
            if not good[before]:
                good[before] = 1
                waiting.append(before)
    found = good.find(0)
    return None if found < 0 else found
