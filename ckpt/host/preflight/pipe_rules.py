"""Rules over pipes: those that lead out of the workload or from one of its trees to another, and what CRIU refuses.

Source: criu/pipes.c, dump_one_pipe(); pipe(7); ckpt/host/outside.py for what takes the place of an end outside.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from typing import Final

from ckpt.host.inspection.holdings import Hold
from ckpt.host.inspection.processes import ProcessFacts
from ckpt.host.preflight.facts import Facts, named, subject
from ckpt.host.preflight.outsiders import holders, is_pipe, outside, tree_of, trees_with, who
from ckpt.host.preflight.rule import Found, Rule
from ckpt.model.findings import Severity
from ckpt.units import Pid

PIPES_MAX: Final = 1024
"""NR_PIPES_WITH_DATA of criu/pipes.c: of those with a reading end, in one tree."""

_READS: Final = frozenset(("O_RDONLY", "O_RDWR"))
_WRITES: Final = frozenset(("O_WRONLY", "O_RDWR"))

Ends = dict[str, list[tuple[ProcessFacts, Hold]]]


def _outside(facts: Facts) -> Iterator[Found]:
    for target, ends in facts.once(_pipes).items():
        # One that is open in both directions here is whole, whoever else has it.
        if _reads(ends) and _writes(ends):
            continue
        others = outside(facts, target)
        if not others:
            continue
        task, hold = ends[0]
        if _writes(ends):
            what = "what it writes goes to the job's log after a restore"
        else:
            what = "after a restore it is at its end"
        yield Found(
            pid=task.pid,
            subject=subject(hold),
            message=f"{named(task, hold)}, whose other end {who(others)} has: {what}",
        )


def _between_trees(facts: Facts) -> Iterator[Found]:
    for target, ends in facts.once(_pipes).items():
        roots = sorted(trees_with(facts, target))
        if len(roots) < 2 or any(_is_whole(facts, ends, root) for root in roots):
            continue
        task, hold = ends[0]
        others = sorted(
            pid for pid in holders(facts, target) if tree_of(facts, pid) != tree_of(facts, task.pid)
        )
        yield Found(
            pid=task.pid,
            subject=subject(hold),
            message=f"{named(task, hold)}, whose other end process {others[0]} has, in another tree of the workload",
        )


def _packets(facts: Facts) -> Iterator[Found]:
    for ends in facts.once(_pipes).values():
        for task, hold in ends:
            # The end that reads does not know it.
            if _access(hold) in _WRITES and int(facts.fdinfo(hold).get("flags", "0"), 8) & os.O_DIRECT:
                yield Found(
                    pid=task.pid,
                    subject=subject(hold),
                    message=f"{named(task, hold)}, a pipe of packets (O_DIRECT), which CRIU cannot dump",
                )


def _too_many(facts: Facts) -> Iterator[Found]:
    read: dict[Pid, int] = {}
    for ends in facts.once(_pipes).values():
        for root in {tree_of(facts, task.pid) for task, hold in ends if _access(hold) in _READS}:
            read[root] = read.get(root, 0) + 1
    for root, number in read.items():
        if number > PIPES_MAX:
            yield Found(
                pid=root,
                subject=f"{number} pipes",
                message=f"{facts.snapshot.processes[root].label} and its descendants read from {number} pipes, and "
                f"CRIU can dump {PIPES_MAX}",
            )


def _fifo_data(facts: Facts) -> Iterator[Found]:
    seen: set[tuple[int, int]] = set()
    for task in facts.tasks:
        for hold in facts.descriptors(task):
            if not stat.S_ISFIFO(hold.status.st_mode) or is_pipe(hold) or hold.key in seen:
                continue
            seen.add(hold.key)
            others = facts.once(_fifo_holders).get(hold.key, ())
            if others and _access(hold) in _READS:
                yield Found(
                    pid=task.pid,
                    subject=subject(hold),
                    message=f"{named(task, hold)}, a FIFO that {who(others)} has open too: what waits in it would be "
                    "there twice after a restore",
                )


def _pipes(facts: Facts) -> Ends:
    found: Ends = {}
    for task in facts.tasks:
        for hold in facts.descriptors(task):
            if is_pipe(hold):
                found.setdefault(hold.target, []).append((task, hold))
    return found


def _fifo_holders(facts: Facts) -> dict[tuple[int, int], tuple[Pid, ...]]:
    wanted = {
        hold.target: hold.key
        for task in facts.tasks
        for hold in facts.descriptors(task)
        if stat.S_ISFIFO(hold.status.st_mode) and not is_pipe(hold)
    }
    found = {key: outside(facts, target) for target, key in wanted.items()}
    return {key: pids for key, pids in found.items() if pids}


def _is_whole(facts: Facts, ends: list[tuple[ProcessFacts, Hold]], root: Pid) -> bool:
    own = [(task, hold) for task, hold in ends if tree_of(facts, task.pid) == root]
    return _reads(own) and _writes(own)


def _reads(ends: list[tuple[ProcessFacts, Hold]]) -> bool:
    return any(_access(hold) in _READS for _, hold in ends)


def _writes(ends: list[tuple[ProcessFacts, Hold]]) -> bool:
    return any(_access(hold) in _WRITES for _, hold in ends)


def _access(hold: Hold) -> str:
    return hold.detail.partition(" ")[2].partition("|")[0]


RULES: Final = (
    Rule(
        name="pipe-outside",
        severity=Severity.WARNING,
        title="a pipe whose other end a process outside has",
        effect="After a restore the program writes to the job's log instead, or reads the end of file.",
        remedy="Redirect it to a file if that matters.",
        source="criu/pipes.c; ckpt/host/outside.py",
        find=_outside,
    ),
    Rule(
        name="pipe-between-trees",
        severity=Severity.BLOCKER,
        title="a pipe from one tree of the workload to another",
        effect="The dump works. Each tree is restored with a pipe of its own: what writes is killed by SIGPIPE.",
        remedy="Start both from one parent inside the cgroup, so that they are one tree.",
        source="criu/pipes.c; pipe(7)",
        find=_between_trees,
    ),
    Rule(
        name="pipe-of-packets",
        severity=Severity.BLOCKER,
        title="a pipe in packet mode",
        effect='The dump fails ("packetized mode for pipes is not supported"), the workload runs on.',
        remedy="Let the program open the pipe without O_DIRECT.",
        source="pipe(2); criu/pipes.c, dump_one_pipe()",
        find=_packets,
    ),
    Rule(
        name="too-many-pipes",
        severity=Severity.BLOCKER,
        title=f"more than {PIPES_MAX} pipes in one tree",
        effect='The dump fails ("OOM storing pipe"), the workload runs on.',
        remedy="Let the program close those that it does not use.",
        source="criu/pipes.c, NR_PIPES_WITH_DATA",
        find=_too_many,
    ),
    Rule(
        name="fifo-outside",
        severity=Severity.WARNING,
        title="a FIFO that a process outside has open as well",
        effect="What was written and not read yet stays in it and is restored into it: it is read twice.",
        remedy="Let it be read before the dump, or end the other process before the restore.",
        source="fifo(7); criu/fifo.c",
        find=_fifo_data,
    ),
)
