"""What is set for the processes of a workload and their threads, as the manifest records it.

Rule: it is read under the freeze, where a thread costs about 12 µs and a process twice that: the tasks change it
themselves, and a dump is of one instant.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

from ckpt.host import task_settings
from ckpt.host.inspection.processes import ProcessFacts
from ckpt.model.settings import CpuRange, ProcessSettings, ThreadSettings, cpu_ranges
from ckpt.units import Pid


def read_settings(processes: Iterable[ProcessFacts]) -> tuple[ProcessSettings, ...]:
    """The settings of these processes, but of those of which only a zombie is left."""
    every_cpu = task_settings.host_cpus()
    known: dict[frozenset[int], tuple[CpuRange, ...]] = {}
    found = []
    for facts in processes:
        if facts.ended:
            continue
        autogroup = task_settings.autogroup_of(facts.pid)
        found.append(
            ProcessSettings(
                pid=facts.pid,
                coredump_filter=task_settings.coredump_filter_of(facts.pid),
                autogroup_nice=autogroup.nice if autogroup else None,
                threads=tuple(_thread(thread, every_cpu, known) for thread in facts.process.threads),
            )
        )
    return tuple(found)


def _thread(
    thread: Pid, every_cpu: frozenset[int], known: dict[frozenset[int], tuple[CpuRange, ...]]
) -> ThreadSettings:
    # A thread that somebody has killed is bound to nothing.
    cpus = every_cpu
    with suppress(ProcessLookupError):
        cpus = task_settings.cpus_of(thread)
    if cpus not in known:
        known[cpus] = () if cpus >= every_cpu else cpu_ranges(cpus)
    return ThreadSettings(
        thread=thread,
        cpus=known[cpus],
        io_priority=task_settings.io_priority_of(thread),
        timer_slack_ns=task_settings.timer_slack_of(thread),
    )
