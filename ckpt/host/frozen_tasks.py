"""Which tasks of a cgroup did not freeze, and what they wait in.

Rule: this is for people, after a freeze that failed: a task that ended, or stopped meanwhile, is left out.
Source: proc_pid_stat(5), proc_pid_wchan(5), proc_pid_stack(5).
"""

from __future__ import annotations

from typing import Final

from ckpt.host import cgroups
from ckpt.host.process_table import ProcessStat, thread_stat_of
from ckpt.units import Pid

TASKS_MAX: Final = 8
_FRAMES_MAX = 3

# Where a frozen task sleeps: version 2's do_freezer_trap() is compiled into get_signal(); version 1's
# __refrigerator(). Tasks that were stopped or are traced count as frozen where they are.
_FROZEN_IN = frozenset(("get_signal", "do_freezer_trap", "__refrigerator", "do_signal_stop", "ptrace_stop"))


def unfrozen_tasks(cgroup: str, *, waiting_only: bool) -> tuple[str, ...]:
    """A phrase for each task that is still not frozen, those that wait in the kernel first; at most TASKS_MAX.

    Args:
        cgroup: The cgroup, with all below it.
        waiting_only: Name only tasks in state D. For version 1, after the thaw: a task that it froze in its
            sleep looks like one that waits in the kernel, as long as it is frozen.
    """
    found: list[tuple[bool, str]] = []
    for each in cgroups.with_all_below(cgroup):
        if "frozen 1" in cgroups.read_or_empty(each, "cgroup.events"):
            continue
        for tid in cgroups.threads_in(each):
            stat = thread_stat_of(tid)
            if stat is None or stat.ended or (waiting_only and stat.state != "D"):
                continue
            if _wchan(tid) not in _FROZEN_IN:
                found.append((stat.state != "D", _phrase(stat)))
    found.sort()
    phrases = tuple(phrase for _, phrase in found[:TASKS_MAX])
    if len(found) > TASKS_MAX:
        phrases += (f"and {len(found) - TASKS_MAX} more",)
    return phrases or ("no task was left running when it was looked at; try a longer timeout",)


def _phrase(task: ProcessStat) -> str:
    waits = _wchan(task.pid)
    frames = _frames(task.pid)
    phrase = f"{task.name} ({task.pid}) is in state {task.state}"
    if waits:
        phrase += f", waits in {waits}"
    return phrase + (f" ({' < '.join(frames)})" if frames else "")


def _wchan(tid: Pid) -> str:
    text = _read(f"/proc/{tid}/wchan")
    return "" if text == "0" else text


def _frames(tid: Pid) -> list[str]:
    """The innermost functions of its kernel stack: "[<0>] futex_wait+0x12f/0x1a0" becomes "futex_wait"."""
    lines = _read(f"/proc/{tid}/stack").splitlines()
    return [line.rpartition(" ")[2].partition("+")[0] for line in lines[:_FRAMES_MAX]]


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            return stream.read()
    except OSError:  # the task ended, or the kernel does not tell
        return ""
