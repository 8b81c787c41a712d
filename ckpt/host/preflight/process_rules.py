"""Rules over what a process is: who traces it, how it is scheduled, whose it is, what it runs.

Source: ptrace(2), sched(7), proc_pid_stat(5); criu/seize.c, criu/cr-dump.c; what a dump and a restore were seen to do
(tests/system/test_rules_tasks.py).
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Final

from ckpt.host.inspection.processes import ProcessFacts
from ckpt.host.preflight.facts import Facts
from ckpt.host.preflight.rule import Found, Rule, When, of_each_task
from ckpt.host.proc_text import read_text
from ckpt.host.process_table import stat_of, thread_stat_of
from ckpt.model.findings import Severity
from ckpt.units import Pid

_CAP_SYS_RESOURCE: Final = 1 << 24
_VFORK_WAITS_IN: Final = frozenset(("kernel_clone", "wait_for_vfork_done"))
_SIGKILL_BIT: Final = 1 << signal.SIGKILL - 1
_AWAIT_S: Final = 0.02
"""How long a thread in state D is given to leave it: what waits for a disk has done so mostly."""


def _traced(_facts: Facts, task: ProcessFacts) -> Iterator[Found]:
    if task.tracer:
        tracer = stat_of(task.tracer)
        name = tracer.name if tracer else "?"
        yield Found(
            pid=task.pid,
            subject=f"tracer {task.tracer}",
            message=f"{task.label} is traced by process {task.tracer} ({name})",
            remedy=f"Detach process {task.tracer} (a debugger, strace), or end it.",
        )


def _other_user(facts: Facts, task: ProcessFacts) -> Iterator[Found]:
    process = task.process
    if (process.uid or process.gid) and not facts.own_capabilities & _CAP_SYS_RESOURCE:
        yield Found(
            pid=task.pid,
            subject=f"uid {process.uid}",
            message=f"{task.label} runs as uid {process.uid} and gid {process.gid}, and without CAP_SYS_RESOURCE "
            "its limits cannot be read",
        )


def _from_memfd(_facts: Facts, task: ProcessFacts) -> Iterator[Found]:
    if task.executable.startswith("/memfd:"):
        yield Found(
            pid=task.pid,
            subject=task.executable,
            message=f"{task.label} runs a program from a memfd, which a restore cannot bring back",
        )


def _deadline(_facts: Facts, task: ProcessFacts) -> Iterator[Found]:
    if task.deadline:
        yield Found(
            pid=task.pid,
            subject="SCHED_DEADLINE",
            message=f"{task.label} is scheduled with SCHED_DEADLINE, which a restore cannot bring back",
        )


def waits_in_vfork(pid: Pid) -> bool:
    """Whether a thread of a process waits for a child of vfork(2), which lives in its memory until then."""
    with suppress(OSError):
        return any(_wait_of(Pid(int(name))) in _VFORK_WAITS_IN for name in os.listdir(f"/proc/{pid}/task"))
    return False


def _leader_ended(facts: Facts) -> Iterator[Found]:
    for task in facts.snapshot.processes.values():
        others = [thread for thread in task.process.threads[1:] if task.ended and _goes_on(thread)]
        if others:
            yield Found(
                pid=task.pid,
                subject=f"{len(others)} threads",
                message=f"{task.label} has ended, and its other threads run on, which CRIU cannot dump",
            )


def _goes_on(thread: Pid) -> bool:
    # Where a process ends as a whole, its first thread may be through before the others, which SIGKILL waits for.
    if _is_killed(thread):
        return False
    stat = thread_stat_of(thread)
    return stat is not None and not stat.exiting


def _is_killed(thread: Pid) -> bool:
    with suppress(OSError):
        pending = read_text(f"/proc/{thread}/status").partition("\nSigPnd:")[2].partition("\n")[0]
        return bool(int(pending, 16) & _SIGKILL_BIT)
    return True


def _uninterruptible(facts: Facts) -> Iterator[Found]:
    waiting = [(task, thread) for task in facts.tasks for thread in _blocked(task.process.threads)]
    if waiting:
        time.sleep(_AWAIT_S)
    for task, thread in waiting:
        place = _wait_of(thread) if _blocked([thread]) else ""
        # Where it waits is told only as long as it does.
        if place not in ("", "0") or (place and _blocked([thread])):
            yield Found(
                pid=task.pid,
                subject=f"thread {thread}",
                message=f"{task.label} waits in the kernel, in {place}, and cannot be stopped there "
                f"(thread {thread} in state D)",
            )


def _blocked(threads: Iterable[Pid]) -> list[Pid]:
    return [
        thread
        for thread in threads
        if (stat := thread_stat_of(thread)) is not None
        and stat.state == "D"
        and _wait_of(thread) not in _VFORK_WAITS_IN
    ]


def _vfork(facts: Facts, task: ProcessFacts) -> Iterator[Found]:
    # Until it calls execve(2) the child lives in its parent's memory.
    maps = facts.holdings(task).maps_text
    children = [child for child in task.children if child in facts.pids]
    if maps and any(facts.snapshot.holdings[child].maps_text == maps for child in children):
        for thread in task.process.threads:
            if _wait_of(thread) in _VFORK_WAITS_IN:
                yield Found(
                    pid=task.pid,
                    subject=f"thread {thread}",
                    message=f"{task.label} is just starting a program (thread {thread})",
                )


def _wait_of(thread: Pid) -> str:
    with suppress(OSError), open(f"/proc/{thread}/wchan", encoding="ascii", errors="replace") as stream:
        return stream.read()
    return ""


RULES: Final = (
    Rule(
        name="traced",
        severity=Severity.BLOCKER,
        title="a process is traced by a debugger, by strace, or by another process of the workload",
        effect="CRIU cannot seize a task that has a tracer: the dump fails, the workload runs on.",
        remedy="Detach the tracer.",
        source="ptrace(2); criu/seize.c",
        find=of_each_task(_traced),
        when=When.ALWAYS,
    ),
    Rule(
        name="other-user",
        severity=Severity.BLOCKER,
        title="a process of another user, where ckpt has no CAP_SYS_RESOURCE",
        effect="Its limits cannot be read: the dump fails, the workload runs on.",
        remedy="Give ckpt the capability CAP_SYS_RESOURCE, or run the workload as root.",
        source="prlimit(2); criu/cr-dump.c, dump_task_rlimits()",
        find=of_each_task(_other_user),
        when=When.ALWAYS,
    ),
    Rule(
        name="program-in-memfd",
        severity=Severity.BLOCKER,
        title="a program that was executed from a memfd",
        effect='The dump works, and the restore fails ("No entry for reg-file-ID"): the workload would be lost.',
        remedy="Run the program from a file.",
        source="memfd_create(2); criu/files-reg.c",
        find=of_each_task(_from_memfd),
        when=When.ALWAYS,
    ),
    Rule(
        name="sched-deadline",
        severity=Severity.BLOCKER,
        title="a thread that is scheduled with SCHED_DEADLINE",
        effect='The dump works, and the restore fails ("Inconsistent sched params"): the workload would be lost.',
        remedy="Let it use another scheduling policy: chrt --other --pid 0 TID.",
        source="sched(7); criu/cr-dump.c, dump_sched_info()",
        find=of_each_task(_deadline),
        when=When.ALWAYS,
    ),
    Rule(
        name="leader-ended",
        severity=Severity.BLOCKER,
        title="a process whose first thread has ended while others run on",
        effect="CRIU takes it for a zombie with threads, and refuses: the dump fails, the workload runs on.",
        remedy="Let the program's first thread wait for the others instead of ending.",
        source="pthread_exit(3); criu/cr-dump.c",
        find=_leader_ended,
        when=When.ALWAYS,
    ),
    Rule(
        name="uninterruptible",
        severity=Severity.WARNING,
        title="a thread that waits in state D, also a moment later: for a disk, a frozen or dead file system, a driver",
        effect="It cannot be stopped before that is over: the dump waits for it, and gives up after --freeze-timeout; "
        "the workload runs on.",
        remedy="Wait, or mend what it waits for (a frozen file system, a server that does not answer).",
        source="proc_pid_stat(5), proc_pid_wchan(5)",
        find=_uninterruptible,
    ),
    Rule(
        name="vfork",
        severity=Severity.BLOCKER,
        title="a thread that waits for a child of vfork(2) to execute a program",
        effect="It cannot be stopped: CRIU would wait for it for ten seconds, with the workload frozen. ckpt lets the "
        "workload go on and tries again.",
        remedy="It passes by itself; ckpt tries again.",
        source="vfork(2); the kernel's kernel/fork.c, wait_for_vfork_done()",
        find=of_each_task(_vfork),
        when=When.MOMENT,
    ),
)
