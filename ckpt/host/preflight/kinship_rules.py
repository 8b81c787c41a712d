"""Rules over what processes and threads have in common, or have apart, in unusual ways.

Rule: outside of the workload only kin are compared: who shares memory or descriptors has them from clone(2), in nearly
all cases from its parent, which still lives.
Source: clone(2), kcmp(2), unshare(2); criu/cr-dump.c, dump_task_kobj_ids(): each process must have memory and
directories of its own, and threads are taken to share all with the first.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Final

from ckpt.host.inspection.processes import ProcessFacts
from ckpt.host.preflight.facts import Facts
from ckpt.host.preflight.kernel_objects import Shared, differ, groups
from ckpt.host.preflight.lasting import lasting
from ckpt.host.preflight.rule import Found, Rule, of_each_task
from ckpt.host.process_table import stat_of
from ckpt.model.findings import Severity
from ckpt.units import Pid

_THREAD_NAMESPACES: Final = ("net", "uts", "ipc", "cgroup", "mnt")
"""Those that one thread alone can leave."""

_THREADS_MAX: Final = 4096
"""Of more threads in one process the rest is not looked at: each takes five readlinks."""


def _memory_inside(facts: Facts) -> Iterator[Found]:
    yield from _shared_inside(facts, Shared.MEMORY, "memory")


def _directories_inside(facts: Facts) -> Iterator[Found]:
    yield from _shared_inside(facts, Shared.DIRECTORIES, "working directory and umask")


def _shared_inside(facts: Facts, what: Shared, noun: str) -> Iterator[Found]:
    pids = [task.pid for task in facts.tasks]
    together = [sorted(group) for group in (groups(pids, what) if len(pids) > 1 else ()) if len(group) > 1]
    pairs = [(first, pid) for first, *others in together for pid in others]
    for first, pid in lasting(pairs, what):
        yield Found(
            pid=pid,
            subject=f"{noun} of process {first}",
            message=f"{facts.snapshot.processes[pid].label} shares its {noun} with process {first} "
            f"({facts.snapshot.processes[first].process.name}), without being one of its threads",
        )


def _outside(facts: Facts) -> Iterator[Found]:
    kin = [(task.pid, pid) for task in facts.tasks for pid in _kin_outside(facts, task)]
    for what, noun in ((Shared.MEMORY, "memory"), (Shared.DESCRIPTORS, "table of descriptors")):
        for pid, other in lasting(kin, what):
            stat = stat_of(other)
            yield Found(
                pid=pid,
                subject=f"{noun} of process {other}",
                message=f"{facts.snapshot.processes[pid].label} shares its {noun} with process {other} "
                f"({stat.name if stat else '?'}), which is not in the workload",
            )


def _kin_outside(facts: Facts, task: ProcessFacts) -> Iterator[Pid]:
    pids = facts.pids
    for pid in (task.process.parent, *task.children):
        if pid > 1 and pid not in pids:
            stat = stat_of(pid)
            if stat is not None and not stat.ended and not stat.kernel_thread:
                yield pid


def _thread_apart(_facts: Facts, task: ProcessFacts) -> Iterator[Found]:
    for thread in task.process.threads[1 : _THREADS_MAX + 1]:
        try:
            apart = _apart(task, thread)
        except OSError:
            continue  # this thread has ended
        for what in apart:
            yield Found(
                pid=task.pid,
                subject=f"thread {thread}, {what}",
                message=f"thread {thread} of {task.label} has a {what} of its own, and would come back with that of "
                "the first thread",
            )


def _apart(task: ProcessFacts, thread: Pid) -> list[str]:
    found = []
    if differ(task.pid, thread, Shared.DESCRIPTORS):
        found.append("table of descriptors")
    if differ(task.pid, thread, Shared.DIRECTORIES):
        found.append("working directory")
    return found + [
        f"{kind} namespace"
        for kind in _THREAD_NAMESPACES
        if os.readlink(f"/proc/{thread}/ns/{kind}") != f"{kind}:[{task.namespaces[kind]}]"
    ]


RULES: Final = (
    Rule(
        name="address-space-shared",
        severity=Severity.BLOCKER,
        title="two processes of the workload that share one address space (clone with CLONE_VM)",
        effect='The dump fails ("Can\'t make VM id"), the workload runs on.',
        remedy="Let it use threads, or fork without CLONE_VM.",
        source="clone(2), kcmp(2); criu/cr-dump.c, dump_task_kobj_ids()",
        find=_memory_inside,
    ),
    Rule(
        name="directories-shared",
        severity=Severity.BLOCKER,
        title="two processes of the workload that share working directory, root and umask (CLONE_FS)",
        effect='The dump fails ("Can\'t make FS id"), the workload runs on.',
        remedy="Let the child call unshare(CLONE_FS), or fork without CLONE_FS.",
        source="clone(2), kcmp(2); criu/cr-dump.c, dump_task_kobj_ids()",
        find=_directories_inside,
    ),
    Rule(
        name="shared-with-kin-outside",
        severity=Severity.WARNING,
        title="a process that shares its memory or its descriptors with a parent or child outside of the workload",
        effect="The dump and the restore work; the restored process has copies of its own, so that what one of the two "
        "changes is not seen by the other any more.",
        remedy="Name a target that has both: the parent by --pid, or the cgroup.",
        source="clone(2), kcmp(2)",
        find=_outside,
    ),
    Rule(
        name="thread-apart",
        severity=Severity.WARNING,
        title="a thread with descriptors, a working directory or namespaces that are not its process's",
        effect="The restored thread has those of its process's first thread; descriptors that only it had are gone.",
        remedy="Checkpoint it while no thread is apart; a program that always has one is not fit for a checkpoint.",
        source="unshare(2), setns(2); criu/cr-dump.c dumps descriptors and namespaces of first threads alone",
        find=of_each_task(_thread_apart),
    ),
)
