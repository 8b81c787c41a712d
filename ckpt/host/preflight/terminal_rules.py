"""Rules over sessions and terminals: what begins outside the workload and what a restore makes of it.

ckpt names a terminal from outside to CRIU (`external`) and gives a new one in its place; what CRIU refuses even so
stands here.
Source: criu/tty.c, tty_verify_ctty(), tty_find_restoring_task() and dump_verify_tty_sids(); criu/pstree.c,
dump_pstree(); credentials(7), pty(7); ckpt/host/outside.py.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from ckpt.host.inspection.holdings import Hold
from ckpt.host.inspection.processes import ProcessFacts
from ckpt.host.preflight.facts import Facts, named, subject
from ckpt.host.preflight.outsiders import tree_of
from ckpt.host.preflight.rule import Found, Rule, When
from ckpt.model.findings import Severity
from ckpt.model.workload import Tree
from ckpt.units import Pid

_OWN_TERMINAL: Final = os.makedev(5, 0)
_MULTIPLEXER: Final = os.makedev(5, 2)
_CONSOLE: Final = os.makedev(5, 1)
_SLAVES: Final = range(136, 144)
_HARDWARE: Final = (4, 204)


@dataclass(frozen=True, slots=True, kw_only=True)
class Terminal:
    """A terminal that a process holds."""

    task: ProcessFacts
    hold: Hold

    @property
    def device(self) -> int:
        """Its device number."""
        return self.hold.status.st_rdev


@dataclass(frozen=True, slots=True, kw_only=True)
class Controlling:
    """What controls a process: its session, and that one's terminal, 0 for none."""

    session: Pid
    device: int


def _not_a_leader(facts: Facts) -> Iterator[Found]:
    for tree, root in _living_roots(facts):
        session = _ids(facts, root, "NSsid")
        pid = _ids(facts, root, "NSpid")
        if not session or not pid or session[-1] == pid[-1]:
            continue
        if session[-1] == 0:
            yield Found(
                pid=tree.root,
                subject="session 0",
                message=f"{root.label} has a session whose leader stands outside its PID namespace",
                option="",
                remedy="Start it with setsid(1) inside the namespace.",
            )
        elif not facts.options.shell_job:
            yield Found(
                pid=tree.root,
                subject=f"session {session[0]}",
                message=f"{root.label} does not lead its session: process {session[0]} does, which is not in its tree",
            )


def _session_terminal(facts: Facts) -> Iterator[Found]:
    for held in _once_in_each_tree(facts):
        control = _controlling(facts, held.task)
        if (
            control is not None
            and control.device == held.device
            and not _is_in_tree(facts, held.task, control.session)
        ):
            yield Found(
                pid=held.task.pid,
                subject=subject(held.hold),
                message=f"{named(held.task, held.hold)}, the terminal of session {control.session}, whose leader is not "
                "in its tree",
            )


def _own_name(facts: Facts) -> Iterator[Found]:
    for held in _terminals(facts):
        if held.device == _OWN_TERMINAL and not _is_controlled_from_outside(facts, held.task):
            yield Found(
                pid=held.task.pid,
                subject=subject(held.hold),
                message=f"{named(held.task, held.hold)}, its session's terminal by the name that every process has "
                "for its own",
            )


def _from_outside(facts: Facts) -> Iterator[Found]:
    seen: set[tuple[int, int]] = set()
    for held in _terminals(facts):
        key = held.hold.status.st_dev, held.device
        if key in seen or held.device in (_OWN_TERMINAL, _CONSOLE, *_all_masters(facts)):
            continue
        seen.add(key)
        yield Found(
            pid=held.task.pid,
            subject=subject(held.hold),
            message=f"{named(held.task, held.hold)}, a terminal from outside: after a restore it is another one, whose "
            "output goes to the job's log, and that nobody types at but whoever resumes it with 'ckpt run --tty'",
        )


def _between_trees(facts: Facts) -> Iterator[Found]:
    for held in _once_in_each_tree(facts):
        if held.device in _all_masters(facts) and held.device not in _masters(facts, held.task):
            yield Found(
                pid=held.task.pid,
                subject=subject(held.hold),
                message=f"{named(held.task, held.hold)}, a terminal whose master another tree of the workload has",
            )


def _living_roots(facts: Facts) -> Iterator[tuple[Tree, ProcessFacts]]:
    for tree in facts.snapshot.trees:
        root = facts.snapshot.processes[tree.root]
        if not root.ended:
            yield tree, root


def _ids(facts: Facts, task: ProcessFacts, name: str) -> tuple[int, ...]:
    """Of each PID namespace, from ours to the innermost; 0 where it has no number there."""
    return tuple(int(word) for word in facts.status(task).get(name, "").split())


def _terminals(facts: Facts) -> Iterator[Terminal]:
    """Those that processes hold; masters, which have no session, are not among them."""
    for task in facts.tasks:
        for hold in facts.descriptors(task):
            if not stat.S_ISCHR(hold.status.st_mode):
                continue
            number = hold.status.st_rdev
            # One whose master was closed is nobody's any more.
            if hold.target.endswith(" (deleted)"):
                continue
            if os.major(number) in (*_SLAVES, *_HARDWARE) or number in (_OWN_TERMINAL, _CONSOLE):
                yield Terminal(task=task, hold=hold)


def _once_in_each_tree(facts: Facts) -> Iterator[Terminal]:
    seen: set[tuple[Pid, int, int]] = set()
    for held in _terminals(facts):
        key = tree_of(facts, held.task.pid), held.hold.status.st_dev, held.device
        if key not in seen:
            seen.add(key)
            yield held


def _masters(facts: Facts, task: ProcessFacts) -> frozenset[int]:
    """The devices of the terminals whose masters are held in the task's tree."""
    return facts.once(_masters_by_tree).get(tree_of(facts, task.pid), frozenset())


def _all_masters(facts: Facts) -> frozenset[int]:
    return frozenset().union(*facts.once(_masters_by_tree).values())


def _masters_by_tree(facts: Facts) -> dict[Pid, frozenset[int]]:
    found: dict[Pid, set[int]] = {}
    for task in facts.tasks:
        for hold in facts.descriptors(task):
            if stat.S_ISCHR(hold.status.st_mode) and hold.status.st_rdev == _MULTIPLEXER:
                index = int(facts.fdinfo(hold).get("tty-index", "-1"))
                if index >= 0:
                    device = os.makedev(_SLAVES.start + index // 256, index % 256)
                    found.setdefault(tree_of(facts, task.pid), set()).add(device)
    return {root: frozenset(devices) for root, devices in found.items()}


def _controlling(facts: Facts, task: ProcessFacts) -> Controlling | None:
    return facts.once(_controls).get(task.pid)


def _controls(facts: Facts) -> dict[Pid, Controlling]:
    found: dict[Pid, Controlling] = {}
    for task in {held.task.pid: held.task for held in _terminals(facts)}.values():
        with suppress(OSError, ValueError), open(f"/proc/{task.pid}/stat", "rb") as stream:
            _, _, _, session, device, *_ = stream.read().rpartition(b")")[2].split()
            found[task.pid] = Controlling(session=Pid(int(session)), device=int(device))
    return found


def _is_controlled_from_outside(facts: Facts, task: ProcessFacts) -> bool:
    control = _controlling(facts, task)
    return (
        control is not None
        and os.major(control.device) in _SLAVES
        and control.device not in _all_masters(facts)
    )


def _is_in_tree(facts: Facts, task: ProcessFacts, pid: Pid) -> bool:
    return pid in facts.pids and tree_of(facts, pid) == tree_of(facts, task.pid)


RULES: Final = (
    Rule(
        name="session",
        severity=Severity.BLOCKER,
        title="a tree whose root does not lead its session, as what a shell started",
        effect='The dump fails ("not a session leader") without --shell-job. With it the tree joins the session of '
        "the restore.",
        remedy="Give --shell-job, or start it with setsid(1) or 'ckpt run'.",
        source="setsid(2); criu/pstree.c, dump_pstree()",
        find=_not_a_leader,
        option="--shell-job",
        when=When.ALWAYS,
    ),
    Rule(
        name="session-terminal",
        severity=Severity.BLOCKER,
        title="a terminal that controls a session whose leader is not in the tree, as that of a shell's job",
        effect='The dump fails ("dangling tty"), or with --shell-job the restore ("No task found with sid"): the '
        "workload would be lost.",
        remedy="Redirect its input and output (</dev/null >FILE 2>&1), or start it with 'ckpt run'.",
        source="criu/tty.c, dump_verify_tty_sids() and tty_find_restoring_task()",
        find=_session_terminal,
        when=When.ALWAYS,
    ),
    Rule(
        name="dev-tty",
        severity=Severity.BLOCKER,
        title="/dev/tty, opened by that name, where the terminal is the workload's own or has gone",
        effect='The dump fails ("ctty inheritance detected"), the workload runs on.',
        remedy="Let the program close it (an editor, a pager, a password prompt: end it).",
        source="criu/tty.c, tty_verify_ctty()",
        find=_own_name,
    ),
    Rule(
        name="terminal-between-trees",
        severity=Severity.BLOCKER,
        title="a pseudo terminal between two trees of the workload",
        effect='The dump fails ("Found slave peer … without correspond master peer"), the workload runs on.',
        remedy="Start both from one parent inside the cgroup, so that they are one tree.",
        source="criu/tty.c, tty_verify_active_pairs()",
        find=_between_trees,
    ),
    Rule(
        name="terminal-outside",
        severity=Severity.WARNING,
        title="a terminal from outside",
        effect="After a restore another terminal takes its place: its output goes to the job's log, and nobody types.",
        remedy="Redirect it to a file if that matters.",
        source="criu/tty.c; ckpt/host/outside.py",
        find=_from_outside,
    ),
)
