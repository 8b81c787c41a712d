"""What CRIU loses of each task is set again while the restored tasks are held: none of them has seen the loss.

Rules:
- It is done after the tasks were moved to their cgroups: a cpuset binds anew whoever comes into it.
- Every task would have inherited the settings of whoever called the restore: all are compared, and set where they
  differ.
- What the host refuses is a sentence and no error: the workload goes on without it.
- No process outside is touched: an autogroup that it shares with the restored tasks stays as it is.
Source: criu/pie/restorer.c, restore_sched_info(): what CRIU itself restores was set before its post-restore hook.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from ckpt.host import task_settings
from ckpt.host.resuming import pid_inside
from ckpt.model.settings import CpuRange, ProcessSettings, ThreadSettings, cpu_ranges
from ckpt.model.workload import Tree
from ckpt.units import Pid

_NOT_THERE: Final = "not on this host, or not allowed by the cgroup"


def set_again(
    tree: Tree,
    settings: Iterable[ProcessSettings],
    host_pid: Callable[[Pid], Pid | None],
    outside: Iterable[Pid],
) -> tuple[str, ...]:
    """Give the processes of a restored tree, and their threads, what was set for them at the dump.

    Args:
        tree: As it was recorded.
        settings: Those of a checkpoint; those of other trees are left out.
        host_pid: From what the images call a process to its pid on this host.
        outside: Processes of the host that may share an autogroup with the tree.

    Returns:
        A sentence for everything that this host refused.
    """
    recorded = {process.pid: process for process in settings}
    groups = {group.name for pid in outside if (group := task_settings.autogroup_of(pid))}
    every_cpu = task_settings.host_cpus()
    losses = _Losses()
    for process in tree.processes:
        pid = host_pid(process.pid_inside)
        if pid is None or process.pid not in recorded:
            continue
        wanted = recorded[process.pid]
        who = f"process {pid} ({process.name})"
        _set_process(pid, who, wanted, groups, losses)
        threads = _threads_of(pid)
        if len(threads) != len(wanted.threads):
            losses.note(
                who, f"settings of its {len(wanted.threads)} threads", "it has another number of them now"
            )
            continue
        for thread, each in zip(threads, wanted.threads, strict=True):
            _set_thread(
                thread, who if thread == pid else f"thread {thread} of {who}", each, every_cpu, losses
            )
    return losses.sentences


@dataclass(slots=True)
class _Losses:
    """What could not be set again, and of whom: one sentence for all that lost the same."""

    _of: dict[tuple[str, str], list[str]] = field(default_factory=dict)

    def note(self, who: str, what: str, why: str) -> None:
        self._of.setdefault((what, why), []).append(who)

    def attempt(self, who: str, what: str, act: Callable[[], None]) -> None:
        try:
            act()
        except OSError as error:
            self.note(who, what, os.strerror(error.errno or 0))

    @property
    def sentences(self) -> tuple[str, ...]:
        return tuple(
            f"{who[0]}{f' and {len(who) - 1} more' if len(who) > 1 else ''} lost the {what}: {why}"
            for (what, why), who in self._of.items()
        )


def _set_process(
    pid: Pid, who: str, wanted: ProcessSettings, outside: Collection[str], losses: _Losses
) -> None:
    bits, nice = wanted.coredump_filter, wanted.autogroup_nice
    if bits is not None and bits != task_settings.coredump_filter_of(pid):
        losses.attempt(
            who, f"core dump filter {bits:#x}", lambda: task_settings.set_coredump_filter(pid, bits)
        )
    group = task_settings.autogroup_of(pid)
    if nice is None or (group and group.nice == nice):
        return
    what = f"nice value {nice} of its autogroup"
    if group is None:
        if nice:
            losses.note(who, what, "this kernel forms no autogroups")
    elif group.name in outside:
        losses.note(who, what, "its session has processes outside the workload")
    else:
        losses.attempt(who, what, lambda: task_settings.set_autogroup_nice(pid, nice))


def _set_thread(
    thread: Pid, who: str, wanted: ThreadSettings, every_cpu: frozenset[int], losses: _Losses
) -> None:
    losses.attempt(who, "CPU affinity", lambda: _bind(thread, who, wanted, every_cpu, losses))
    priority, slack_ns = wanted.io_priority, wanted.timer_slack_ns
    if priority is not None and priority != task_settings.io_priority_of(thread):
        losses.attempt(
            who, f"I/O priority {priority:#x}", lambda: task_settings.set_io_priority(thread, priority)
        )
    if slack_ns is not None and slack_ns != task_settings.timer_slack_of(thread):
        losses.attempt(
            who, f"timer slack of {slack_ns} ns", lambda: task_settings.set_timer_slack(thread, slack_ns)
        )


def _bind(thread: Pid, who: str, wanted: ThreadSettings, every_cpu: frozenset[int], losses: _Losses) -> None:
    """Bind a thread to its CPUs, as far as they are there; to all where it was bound to none, or none is there."""
    cpus = wanted.cpu_numbers or every_cpu
    if task_settings.cpus_of(thread) == cpus:
        return
    try:
        task_settings.bind_to_cpus(thread, cpus)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        task_settings.bind_to_cpus(thread, every_cpu)
    gone = wanted.cpu_numbers - task_settings.cpus_of(thread)
    if gone:
        losses.note(who, f"binding to {_named(cpu_ranges(gone))}", _NOT_THERE)


def _named(ranges: tuple[CpuRange, ...]) -> str:
    numbers = [str(each.first) if each.first == each.last else f"{each.first}-{each.last}" for each in ranges]
    return f"CPU {', '.join(numbers)}"


def _threads_of(pid: Pid) -> list[Pid]:
    """The threads of a restored process: the leader first, the others in the order of their making; none if it ended."""
    threads: list[Pid] = []
    with suppress(OSError):
        threads += (Pid(int(name)) for name in os.listdir(f"/proc/{pid}/task"))
    # CRIU makes them one after another: in a new PID namespace their numbers outside have begun anew at some point
    # if the host's were used up, but those inside are as they were.
    inside = {thread: pid_inside(thread) for thread in threads} if pid_inside(pid) != pid else {}
    return sorted(threads, key=lambda thread: (thread != pid, inside.get(thread, thread)))
