"""Rules over what a restore loses without a word, as far as it can be seen from outside.

Rule: what ckpt sets again itself (affinity, I/O priority and the like) is not lost, and what can be seen by no file of
/proc stands in docs/rules.md instead.
Source: what a real dump and restore by ckpt were seen to do (tests/system/test_rules_losses.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from typing import Final

from ckpt.host.inspection.processes import ProcessFacts
from ckpt.host.preflight.facts import Facts
from ckpt.host.preflight.kernel_objects import last_toucher
from ckpt.host.preflight.rule import Found, Rule, of_each_task
from ckpt.model.findings import Severity
from ckpt.units import Pid

_SEMAPHORES_MAX: Final = 4096
"""Of more semaphores on a host the rest is not asked: each takes a system call."""

_NUMA_BYTES: Final = 4096
_NUMA_RESIDENT_KIB_MAX: Final = 1 << 20
"""The first lines of numa_maps: the policy is in every line, and the kernel walks the memory of what is read, which takes
it too long in a process that has more than this. Children inherit it: the first processes tell.
"""

_NUMA_TASKS_MAX: Final = 4

_PERSONALITIES: Final = {
    0x0000008: "PER_LINUX32",
    0x0040000: "ADDR_NO_RANDOMIZE",
    0x0100000: "MMAP_PAGE_ZERO",
    0x0200000: "ADDR_COMPAT_LAYOUT",
    0x0400000: "READ_IMPLIES_EXEC",
    0x8000000: "ADDR_LIMIT_3GB",
}


def _personality(_facts: Facts, task: ProcessFacts) -> Iterator[Found]:
    with open(f"/proc/{task.pid}/personality", encoding="ascii") as stream:
        bits = int(stream.read(), 16)
    if bits:
        names = [name for bit, name in _PERSONALITIES.items() if bits & bit] or [f"{bits:#x}"]
        yield Found(
            pid=task.pid,
            subject=" ".join(names),
            message=f"{task.label} has the personality {' '.join(names)}, and comes back with the default one",
        )


def _merging(facts: Facts, task: ProcessFacts) -> Iterator[Found]:
    if any(line.split() == ["ksm_merge_any:", "yes"] for line in facts.lines(f"/proc/{task.pid}/ksm_stat")):
        yield Found(
            pid=task.pid,
            subject="PR_SET_MEMORY_MERGE",
            message=f"{task.label} lets the kernel merge equal pages of all its memory, and comes back without",
        )


def _memory_policy(facts: Facts) -> Iterator[Found]:
    for task in islice(facts.tasks, _NUMA_TASKS_MAX):
        resident, _, unit = facts.status(task).get("VmRSS", "").partition(" ")
        if unit == "kB" and int(resident) > _NUMA_RESIDENT_KIB_MAX:
            continue
        words: list[str] = []
        with suppress(OSError), open(f"/proc/{task.pid}/numa_maps", "rb", buffering=0) as stream:
            words = stream.read(_NUMA_BYTES).split(b"\n", 1)[0].decode(errors="replace").split()
        if len(words) > 1 and words[1] != "default":
            yield Found(
                pid=task.pid,
                subject=words[1],
                message=f"{task.label} has the NUMA memory policy {words[1]}, and comes back with the default one",
            )


def _cgroup_namespace(facts: Facts) -> Iterator[Found]:
    for tree in facts.snapshot.trees:
        task = facts.snapshot.processes[tree.root]
        if tree.owns("cgroup") and not task.ended:
            yield Found(
                pid=task.pid,
                subject=f"cgroup:[{task.namespaces['cgroup']}]",
                message=f"{task.label} has a cgroup namespace of its own, and comes back in the host's",
            )


def _of_the_host(facts: Facts) -> dict[Pid, ProcessFacts]:
    """The processes that live in our own IPC namespace."""
    ours = facts.own_namespaces["ipc"]
    return {task.pid: task for task in facts.tasks if task.namespaces["ipc"] == ours}


def _semaphores(facts: Facts) -> Iterator[Found]:
    tasks = facts.once(_of_the_host)
    asked = 0
    for row in facts.lines("/proc/sysvipc/sem")[1:] if tasks else ():
        _key, semid, _mode, count, _uid, _gid, _cuid, _cgid, operated, _changed = map(int, row.split())
        numbers = range(min(count, _SEMAPHORES_MAX - asked) if operated else 0)
        asked += len(numbers)
        with suppress(OSError):
            for pid in {last_toucher(semid, number) for number in numbers} & tasks.keys():
                yield Found(
                    pid=pid,
                    subject=f"System V semaphores {semid}",
                    message=f"{tasks[pid].label} uses the System V semaphores {semid} of the host",
                )


def _messages(facts: Facts) -> Iterator[Found]:
    tasks = facts.once(_of_the_host)
    for row in facts.lines("/proc/sysvipc/msg")[1:] if tasks else ():
        _key, msqid, _mode, _bytes, _count, sender, receiver, *_ = map(int, row.split())
        for pid in {Pid(sender), Pid(receiver)} & tasks.keys():
            yield Found(
                pid=pid,
                subject=f"System V message queue {msqid}",
                message=f"{tasks[pid].label} uses the System V message queue {msqid} of the host",
            )


RULES: Final = (
    Rule(
        name="personality",
        severity=Severity.WARNING,
        title="a personality that is not the default (setarch -R, a debugger's ADDR_NO_RANDOMIZE)",
        effect="It is lost: what the restored process executes later is randomized again.",
        remedy="Nothing, unless the program executes others that need it: start these by setarch.",
        source="personality(2)",
        find=of_each_task(_personality),
    ),
    Rule(
        name="memory-merging",
        severity=Severity.WARNING,
        title="memory merging for the whole process (PR_SET_MEMORY_MERGE)",
        effect="It is lost: the restored process takes more memory. What madvise(MADV_MERGEABLE) asked for is kept.",
        remedy="Let the program ask for it again, or use madvise(2).",
        source="prctl(2); /proc/PID/ksm_stat (Linux 6.1, with ksm_merge_any from 6.16)",
        find=of_each_task(_merging),
    ),
    Rule(
        name="numa-policy",
        severity=Severity.WARNING,
        title="a NUMA memory policy (numactl, set_mempolicy) of one of the first four processes, with less than 1 GiB in memory",
        effect="It is lost: new memory of the restored process comes from any node.",
        remedy="Let the program set it again.",
        source="set_mempolicy(2), numa(7). Policies of single areas (mbind) are lost as well, and not looked for: the "
        "kernel would have to walk all memory",
        find=_memory_policy,
    ),
    Rule(
        name="cgroup-namespace",
        severity=Severity.WARNING,
        title="a cgroup namespace of its own",
        effect="It is lost: the restored processes see the whole path of their cgroup in /proc.",
        remedy="Nothing, unless the program reads /proc/self/cgroup: then let it read it again.",
        source="cgroup_namespaces(7)",
        find=_cgroup_namespace,
    ),
    Rule(
        name="host-semaphores",
        severity=Severity.WARNING,
        title="System V semaphores of the host's IPC namespace that a process of the workload operated on last",
        effect="They are the host's: a restore does not set their values back, what SEM_UNDO would do at the end of the "
        "process is done when the dump stops it, and forgotten when it is restored.",
        remedy="Start it as a job ('ckpt run'), which has an IPC namespace of its own.",
        source="sysvipc(7), semctl(2) with GETPID",
        find=_semaphores,
    ),
    Rule(
        name="host-messages",
        severity=Severity.WARNING,
        title="a System V message queue of the host's IPC namespace that a process of the workload used last",
        effect="It is the host's: its messages are not in the checkpoint, and a restore finds those of that moment.",
        remedy="Start it as a job ('ckpt run'), which has an IPC namespace of its own.",
        source="sysvipc(7)",
        find=_messages,
    ),
)
