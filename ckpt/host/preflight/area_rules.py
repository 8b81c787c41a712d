"""Rules over areas of memory with flags or keys that CRIU does not know, and so does not restore.

Source: proc_pid_smaps(5); mseal(2), mlock2(2), userfaultfd(2), pkeys(7); criu/proc_parse.c, __parse_vmflags().
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from ckpt.host.inspection.processes import ProcessFacts
from ckpt.host.preflight.areas import FlaggedArea, flagged_areas
from ckpt.host.preflight.facts import Facts
from ckpt.host.preflight.rule import Found, Rule
from ckpt.model.findings import Severity


def _page_faults(facts: Facts) -> Iterator[Found]:
    for task, area in _areas(facts, "um", "ui"):
        yield Found(
            pid=task.pid,
            subject=area.label,
            message=f"{task.label} has memory at {area.label} that another process fills at page faults",
        )


def _write_protected(facts: Facts) -> Iterator[Found]:
    for task, area in _areas(facts, "uw"):
        yield Found(
            pid=task.pid,
            subject=area.label,
            message=f"{task.label} has memory at {area.label} whose writes a userfaultfd follows, and that is lost",
        )


def _sealed(facts: Facts) -> Iterator[Found]:
    for task, area in _areas(facts, "sl"):
        yield Found(
            pid=task.pid, subject=area.label, message=f"{task.label} has sealed its memory at {area.label}"
        )


def _locked_on_fault(facts: Facts) -> Iterator[Found]:
    for task, area in _areas(facts, "lf"):
        yield Found(
            pid=task.pid,
            subject=area.label,
            message=f"{task.label} has locked its memory at {area.label} with MLOCK_ONFAULT, which becomes a full lock",
        )


def _protection_keys(facts: Facts) -> Iterator[Found]:
    for task in facts.tasks:
        keys = {area.key for area in facts.once(flagged_areas).get(task.pid, ()) if area.key}
        if keys:
            yield Found(
                pid=task.pid,
                subject="protection keys",
                message=f"{task.label} uses {len(keys)} protection key(s) (pkey_alloc)",
            )


def _areas(facts: Facts, *flags: str) -> Iterator[tuple[ProcessFacts, FlaggedArea]]:
    for task in facts.tasks:
        for area in facts.once(flagged_areas).get(task.pid, ()):
            if not area.flags.isdisjoint(flags):
                yield task, area


_LOOKED_FOR: Final = (
    ". Looked for in the first four processes and in all that lock memory, but for those with more than 4 GiB in memory, "
    "128 MiB of page tables or 16384 areas, which the kernel would have to walk"
)

RULES: Final = (
    Rule(
        name="page-faults-outside",
        severity=Severity.BLOCKER,
        title="Memory whose missing pages a process outside supplies by a userfaultfd (a lazy restore that goes on).",
        effect="Dump and restore succeed, and pages that were not there yet are zeros.",
        remedy="Wait until all pages have come.",
        source="proc_pid_smaps(5), VmFlags um and ui; seen" + _LOOKED_FOR,
        find=_page_faults,
    ),
    Rule(
        name="memory-sealed",
        severity=Severity.WARNING,
        title="Memory that was sealed by mseal(2).",
        effect="The restored memory is not sealed.",
        remedy="Let it seal its memory again, if its safety depends on it.",
        source="VmFlags sl; seen" + _LOOKED_FOR,
        find=_sealed,
    ),
    Rule(
        name="protection-keys",
        severity=Severity.WARNING,
        title="Memory with a protection key (V8, some databases).",
        effect="Keys are not restored: the memory can be accessed by all, and pkey_mprotect(2) with one of them fails.",
        remedy="Run it without protection keys, or test that it survives a restore.",
        source="pkeys(7); CRIU has no word of them. Not provoked: needs a CPU that has them" + _LOOKED_FOR,
        find=_protection_keys,
    ),
    Rule(
        name="write-tracking",
        severity=Severity.WARNING,
        title="Memory whose writes are followed by a userfaultfd in write-protect mode.",
        effect="The restored memory is not followed any more.",
        remedy="Let who follows it begin anew after a restore.",
        source="VmFlags uw; seen" + _LOOKED_FOR,
        find=_write_protected,
    ),
    Rule(
        name="locked-on-fault",
        severity=Severity.WARNING,
        title="Memory that was locked with MLOCK_ONFAULT.",
        effect="It is locked as a whole after a restore, and takes that much more memory.",
        remedy="See to it that the host has the memory.",
        source="VmFlags lf; seen" + _LOOKED_FOR,
        find=_locked_on_fault,
    ),
)
