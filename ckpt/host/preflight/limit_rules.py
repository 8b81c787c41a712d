"""Rules over limits: those of the workload, which bind CRIU's code in it, and those of this host.

Rule: CRIU runs code in every process that it dumps; that needs a little memory and three numbers of descriptors of
the process's own.
Source: getrlimit(2), statvfs(3); criu/servicefd.c, choose_service_fd_base(); compel/src/lib/infect.c.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

from ckpt.host.inspection.processes import ProcessFacts
from ckpt.host.preflight.facts import Facts, fd_of
from ckpt.host.preflight.rule import Found, Rule, When, of_each_task
from ckpt.model.findings import Severity
from ckpt.units import Pid, human_bytes

_CAP_SYS_RESOURCE: Final = 1 << 24

_FREE_DESCRIPTORS: Final = 3
"""With two the dump fails, with three it does not."""

_FREE_ADDRESSES: Final = 128 << 10
"""With 64 KiB the dump fails, with 128 KiB it does not."""

_SERVICE_DESCRIPTORS: Final = 32
"""CRIU's own in a task that it restores, 16, and as many as a safety pad; they lie above the task's."""
_DESCRIPTOR_BLOCK: Final = 128
"""The limit counts in whole blocks of this."""


def _descriptors_full(facts: Facts, task: ProcessFacts) -> Iterator[Found]:
    limit = _limit(task.pid, resource.RLIMIT_NOFILE)
    if limit is None:
        return
    free = limit - sum(fd_of(hold) < limit for hold in facts.descriptors(task))
    if free < _FREE_DESCRIPTORS:
        yield Found(
            pid=task.pid,
            subject=f"RLIMIT_NOFILE {limit}",
            message=f"{task.label} may have {limit} open files, and of these numbers {free} are free: CRIU needs "
            f"{_FREE_DESCRIPTORS} in it",
            remedy=f"Raise the limit: prlimit --pid {task.pid} --nofile={limit + _FREE_DESCRIPTORS - free}:",
        )


def _addresses_full(facts: Facts, task: ProcessFacts) -> Iterator[Found]:
    limit = _limit(task.pid, resource.RLIMIT_AS)
    size = facts.status(task).get("VmSize") if limit is not None else None
    if limit is None or size is None:
        return
    needed = _bytes_of(size) + _FREE_ADDRESSES
    if needed > limit:
        yield Found(
            pid=task.pid,
            subject=f"RLIMIT_AS {limit}",
            message=f"{task.label} may map {human_bytes(limit)}, and has mapped {size}: CRIU needs "
            f"{human_bytes(_FREE_ADDRESSES)} more in it",
            remedy=f"Raise the limit: prlimit --pid {task.pid} --as={needed}:",
        )


def _descriptor_number(facts: Facts, task: ProcessFacts) -> Iterator[Found]:
    if facts.own_capabilities & _CAP_SYS_RESOURCE:
        return  # CRIU raises its limit as far as the kernel goes
    ours = facts.own_descriptors_max
    highest = max((fd_of(hold) for hold in facts.descriptors(task)), default=0)
    if highest + _SERVICE_DESCRIPTORS > ours - ours % _DESCRIPTOR_BLOCK:
        yield Found(
            pid=task.pid,
            subject=f"fd {highest}",
            message=f"{task.label} holds fd {highest}, and ckpt may open {ours} files: a restore needs the numbers up "
            f"to {highest + _SERVICE_DESCRIPTORS}",
        )


def _no_space(facts: Facts) -> Iterator[Found]:
    if not facts.staging:
        return
    sizes = [_sizes(facts, task) for task in facts.tasks]
    # Shared memory is written once; how much of it several processes have in common is not known.
    needed = sum(private for private, _ in sizes) + max((shared for _, shared in sizes), default=0)
    space = os.statvfs(facts.staging)
    available = space.f_bavail * space.f_frsize
    if needed > available:
        yield Found(
            pid=None,
            subject=facts.staging,
            message=f"the images will take at least {human_bytes(needed)}, and {human_bytes(available)} are left below "
            f"{facts.staging}",
        )


def _sizes(facts: Facts, task: ProcessFacts) -> tuple[int, int]:
    """The bytes of memory that a dump writes: private and shared."""
    status = facts.status(task)
    private = _bytes_of(status.get("RssAnon", "0 kB")) + _bytes_of(status.get("VmSwap", "0 kB"))
    return private, _bytes_of(status.get("RssShmem", "0 kB"))


def _bytes_of(text: str) -> int:
    return int(text.split(maxsplit=1)[0]) << 10


def _limit(pid: Pid, what: int) -> int | None:
    """The soft limit; None for none, and where we may not read it."""
    with suppress(PermissionError):
        soft, _ = resource.prlimit(pid, what)
        return None if soft == resource.RLIM_INFINITY else soft
    return None


RULES: Final = (
    Rule(
        name="descriptors-full",
        severity=Severity.BLOCKER,
        title="a process that may open no three files more (RLIMIT_NOFILE)",
        effect='The dump fails ("Can\'t create memfd in victim"), the workload runs on.',
        remedy="Raise the limit.",
        source="getrlimit(2); compel/src/lib/infect.c; seen: two free numbers are too few, three are enough",
        find=of_each_task(_descriptors_full),
    ),
    Rule(
        name="addresses-full",
        severity=Severity.BLOCKER,
        title="a process that may map no 128 KiB more (RLIMIT_AS)",
        effect='The dump fails ("remote mmap() failed"), the workload runs on.',
        remedy="Raise the limit.",
        source="getrlimit(2); compel/src/lib/infect.c; seen: 64 KiB are too little, 128 KiB are enough",
        find=of_each_task(_addresses_full),
    ),
    Rule(
        name="descriptor-number",
        severity=Severity.BLOCKER,
        title="a descriptor whose number is too near to the limit of open files that ckpt has",
        effect='The dump works, and the restore fails ("Can\'t chose service_fd_base").',
        remedy="Raise the hard limit of open files where ckpt runs (ulimit -Hn), or give it CAP_SYS_RESOURCE.",
        source="criu/servicefd.c, choose_service_fd_base()",
        find=of_each_task(_descriptor_number),
    ),
    Rule(
        name="staging-space",
        severity=Severity.BLOCKER,
        title="more memory to write than there is space for the images",
        effect="The dump fails, the workload runs on.",
        remedy="Free some space there, or choose another place (CKPT_STATE).",
        source="statvfs(3); proc_pid_status(5): RssAnon, VmSwap, RssShmem",
        find=_no_space,
        when=When.CHECK,
    ),
)
