"""Which tasks have an object in common for good, and which for the time of a vfork(2) alone.

Rule: a child of vfork(2) has its parent's memory until it executes its program, and nothing tells so for certain: the
parent sleeps in wait_for_vfork_done() for most of that time, but before it gets there, and after it was woken until
the child has its new memory, it looks like any other that runs. On a busy machine those moments last. So what two
tasks have in common counts once both were seen asleep with it several times, elsewhere than in vfork(2), or when
they have had it for longer than they can be kept off a CPU.
Source: vfork(2); kernel/fork.c, kernel_clone(); fs/exec.c, exec_mmap(), which wakes the parent first.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Final, TypeAlias

from ckpt.host.preflight.kernel_objects import Shared, share
from ckpt.host.preflight.process_rules import waits_in_vfork
from ckpt.host.process_table import stat_of, thread_stat_of
from ckpt.units import Pid

_PAUSE_S: Final = 0.005
_ASLEEP_LOOKS: Final = 3
_LOOKS_MAX: Final = 100

Pair: TypeAlias = tuple[Pid, Pid]


def lasting(pairs: Iterable[Pair], what: Shared) -> list[Pair]:
    """Those of the pairs that go on to share.

    It takes no time where none shares, some 10 ms where those that do are asleep, 0.5 s where they always run.
    """
    pairs = list(pairs)
    found = [pair for pair in pairs if share(*pair, what)]
    looks = dict.fromkeys(found, 0)
    for _ in range(_LOOKS_MAX):
        # Who runs is asked first: who begins to wait in vfork(2) after that is seen to wait there.
        asleep = {pair for pair in found if not any(map(_runs, pair))}
        found = [pair for pair in found if not _is_passing(pair, what) and share(*pair, what)]
        for pair in asleep.intersection(found):
            looks[pair] += 1
        if all(looks[pair] >= _ASLEEP_LOOKS for pair in found):
            break
        time.sleep(_PAUSE_S)
    return found


def _is_passing(pair: Pair, what: Shared) -> bool:
    parents = {stat.parent for pid in pair if (stat := stat_of(pid)) is not None}
    return any(waits_in_vfork(pid) for pid in {*pair, *(p for p in parents if share(p, pair[0], what))})


def _runs(pid: Pid) -> bool:
    """Whether a thread runs, or waits for a CPU."""
    with suppress(OSError):
        threads = map(int, os.listdir(f"/proc/{pid}/task"))
        return any((stat := thread_stat_of(thread)) is not None and stat.state == "R" for thread in threads)
    return False
