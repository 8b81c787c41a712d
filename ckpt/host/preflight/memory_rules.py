"""Rules over memory: what is mapped, how, and with whom it is shared.

Source: criu/proc_parse.c, handle_vma() and parse_vma_vmflags(); criu/cr-dump.c, check_sysvipc_map_dump();
criu/kerndat.c, kerndat_get_hugetlb_dev(); proc_pid_maps(5), proc_pid_status(5).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

from ckpt.host.inspection.processes import ProcessFacts
from ckpt.host.preflight import area_rules
from ckpt.host.preflight.facts import Facts
from ckpt.host.preflight.rule import Found, Rule, When, of_each_task
from ckpt.model.findings import Severity
from ckpt.units import human_bytes

_SYSV: Final = "/SYSV"
_SECRET: Final = "/secretmem"  # noqa: S105 - a file's name
_UPROBES: Final = b"[uprobes]"
_HUGE: Final = re.compile(rb"^([0-9a-f]+)-([0-9a-f]+) .*/anon_hugepage", re.MULTILINE)
_HUGE_SIZES: Final = "/sys/kernel/mm/hugepages"
_KERNEL_CACHE: Final = "/run/criu.kdat"
_FAILS: Final = "The dump fails, and the workload runs on."
_KIB: Final = 1024


def _sysv(facts: Facts, task: ProcessFacts) -> Iterator[Found]:
    if task.namespaces["ipc"] == facts.own_namespaces["ipc"]:
        for path in facts.holdings(task).special_maps:
            if path.startswith(_SYSV):
                name = path.partition(" ")[0]
                yield Found(
                    pid=task.pid,
                    subject=name,
                    message=f"{task.label} maps SysV shared memory ({name}) of the host",
                )


def _secret(facts: Facts, task: ProcessFacts) -> Iterator[Found]:
    # CRIU refuses the descriptor, too, where nothing of it is mapped.
    for verb, paths in (
        ("maps", facts.holdings(task).special_maps),
        ("holds", (hold.target for hold in facts.descriptors(task))),
    ):
        if any(path.startswith(_SECRET) for path in paths):
            yield Found(
                pid=task.pid,
                subject=_SECRET,
                message=f"{task.label} {verb} secret memory (memfd_secret), which nobody else can read",
            )
            return


def _uprobes(facts: Facts, task: ProcessFacts) -> Iterator[Found]:
    if _UPROBES in facts.holdings(task).maps_text:
        yield Found(
            pid=task.pid,
            subject="[uprobes]",
            message=f"{task.label} was stopped by a uprobe, and has its area",
        )


def _no_huge_pages(facts: Facts, task: ProcessFacts) -> Iterator[Found]:
    if _huge_bytes(facts, task) and not any(_free_huge_pages().values()):
        known = os.path.exists(_KERNEL_CACHE)
        yield Found(
            pid=task.pid,
            subject="huge pages",
            severity=Severity.WARNING if known else None,
            message=f"{task.label} maps huge pages, and none is free here, by which CRIU learns to know them",
        )


def _huge_pages(facts: Facts, task: ProcessFacts) -> Iterator[Found]:
    if size := _huge_bytes(facts, task):
        yield Found(
            pid=task.pid,
            subject="huge pages",
            message=f"{task.label} maps {human_bytes(size)} of huge pages",
        )


def _huge_bytes(facts: Facts, task: ProcessFacts) -> int:
    maps = facts.holdings(task).maps_text
    return sum(int(end, 16) - int(start, 16) for start, end in _HUGE.findall(maps))


def _free_huge_pages() -> dict[str, int]:
    """How many may be had of each size, surplus pages included."""
    found: dict[str, int] = {}
    with suppress(OSError):
        for size in os.listdir(_HUGE_SIZES):
            free, reserved, allowed, surplus = (
                _number(f"{_HUGE_SIZES}/{size}/{name}")
                for name in (
                    "free_hugepages",
                    "resv_hugepages",
                    "nr_overcommit_hugepages",
                    "surplus_hugepages",
                )
            )
            found[size] = max(free - reserved, 0) + max(allowed - surplus, 0)
    return found


def _number(path: str) -> int:
    with open(path, encoding="ascii") as stream:
        return int(stream.read())


def _locked(facts: Facts, task: ProcessFacts) -> Iterator[Found]:
    locked = int(facts.status(task).get("VmLck", "0 kB").split()[0]) * _KIB
    if locked:
        yield Found(
            pid=task.pid,
            subject="locked memory",
            message=f"{task.label} has locked {human_bytes(locked)} of its memory",
        )


def _size(facts: Facts) -> Iterator[Found]:
    private, shared = 0, 0
    for task in facts.tasks:
        status = facts.status(task)
        private += sum(int(status.get(name, "0 kB").split()[0]) for name in ("RssAnon", "VmSwap"))
        shared = max(shared, int(status.get("RssShmem", "0 kB").split()[0]))
    yield Found(
        pid=None,
        subject="size",
        message=f"The images will have about {human_bytes((private + shared) * _KIB)}",
    )


RULES: Final = (
    Rule(
        name="sysv-memory",
        severity=Severity.BLOCKER,
        title="SysV shared memory of the host's IPC namespace.",
        effect=_FAILS,
        remedy="Start it as a job ('ckpt run'), which has an IPC namespace of its own.",
        source="criu/cr-dump.c (check_sysvipc_map_dump); seen",
        find=of_each_task(_sysv),
        when=When.ALWAYS,
    ),
    Rule(
        name="secret-memory",
        severity=Severity.BLOCKER,
        title="Memory of memfd_secret(2).",
        effect=_FAILS,
        remedy="Run it without secret memory.",
        source="criu/proc_parse.c; seen",
        find=of_each_task(_secret),
        when=When.ALWAYS,
    ),
    Rule(
        name="uprobes",
        severity=Severity.BLOCKER,
        title="The area that the kernel adds to a process which ran into a uprobe.",
        effect=_FAILS,
        remedy="Stop the tracer and start the workload anew: the area stays as long as the process lives.",
        source="criu/proc_parse.c (handle_vma): --allow-uprobes cannot be given by RPC; seen",
        find=of_each_task(_uprobes),
        when=When.ALWAYS,
    ),
    Rule(
        name="huge-pages-unknown",
        severity=Severity.BLOCKER,
        title="Huge pages, while none is free: CRIU must map one to tell their areas from files.",
        effect=_FAILS,
        remedy="Let one more be had: sysctl vm.nr_hugepages, or vm.nr_overcommit_hugepages.",
        source="criu/kerndat.c (kerndat_get_hugetlb_dev); seen. CRIU may remember it in /run/criu.kdat",
        find=of_each_task(_no_huge_pages),
    ),
    *area_rules.RULES,
    Rule(
        name="huge-pages",
        severity=Severity.INFO,
        title="Huge pages.",
        effect="The restore fails where not as many are free.",
        remedy="So many must be free where it is restored (vm.nr_hugepages).",
        source="seen",
        find=of_each_task(_huge_pages),
    ),
    Rule(
        name="memory-locked",
        severity=Severity.INFO,
        title="Locked memory (mlock).",
        effect="It is locked again; mlockall(MCL_FUTURE) does not hold for what is mapped later.",
        remedy="",
        source="seen",
        find=of_each_task(_locked),
    ),
    Rule(
        name="size",
        severity=Severity.INFO,
        title="How much memory is written to the images.",
        effect="So much space is needed, and the workload stands still while it is written.",
        remedy="",
        source="proc_pid_status(5): RssAnon, VmSwap, RssShmem",
        find=_size,
    ),
)
