"""Rules over epoll instances: CRIU must find each file that one waits for again.

Rule: an instance that several processes have (a child inherits it) is looked at through one of them: at the dump the
first in the order of the tree, at the restore the one with the lowest pid. What the others have closed does not matter.
Source: criu/eventpoll.c; criu/files.c, do_dump_gen_file(); criu/include/files.h, fdinfo_rst_prio(); kcmp(2).
"""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Iterator
from typing import Final

from ckpt.host.inspection.holdings import Hold
from ckpt.host.inspection.processes import ProcessFacts
from ckpt.host.preflight.facts import Facts, fd_of, named, subject
from ckpt.host.preflight.held_descriptors import descriptors
from ckpt.host.preflight.rule import Found, Rule
from ckpt.model.findings import Severity
from ckpt.model.workload import Tree
from ckpt.units import Pid

_INSTANCE: Final = "anon_inode:[eventpoll]"
_TARGET: Final = re.compile(r"tfd:\s*([0-9]+) .*\bino:([0-9a-f]+) sdev:([0-9a-f]+)")
_KCMP: Final = {"x86_64": 312, "aarch64": 272}.get(os.uname().machine)
_KCMP_FILE: Final = 0
_KCMP_EPOLL_TFD: Final = 7
_MINOR_BITS: Final = 20

_libc: Final = ctypes.CDLL(None, use_errno=True)


def _lost_target(facts: Facts) -> Iterator[Found]:
    for task, hold in facts.once(descriptors).anonymous:
        if hold.target != _INSTANCE:
            continue
        held = {fd_of(other): other for other in facts.descriptors(task)}
        targets = (_TARGET.match(line) for line in facts.fdinfo_lines(hold))
        lost = [match for match in targets if match and not _has_target(task, hold, held, match)]
        if lost and _is_looked_at(facts, task, hold):
            for match in lost:
                yield Found(
                    pid=task.pid,
                    subject=subject(hold),
                    message=f"{named(task, hold)}, which waits for a file that was fd {match[1]} and is open in other "
                    "processes alone",
                )


def _has_target(task: ProcessFacts, poll: Hold, held: dict[int, Hold], target: re.Match[str]) -> bool:
    number, inode, device = int(target[1]), int(target[2], 16), int(target[3], 16)
    key = (os.makedev(device >> _MINOR_BITS, device & (1 << _MINOR_BITS) - 1), inode)
    if number in held and held[number].key == key:
        return True
    # Several files may be of one inode: the kernel alone knows which of them it is.
    return any(
        _is_target(task.pid, fd, fd_of(poll), number) for fd, other in held.items() if other.key == key
    )


def _is_looked_at(facts: Facts, task: ProcessFacts, poll: Hold) -> bool:
    """Whether CRIU knows the instance through this process, at the dump or at the restore."""
    tree = next(tree for tree in facts.snapshot.trees if any(each.pid == task.pid for each in tree.processes))
    order = [pid for pid in _as_dumped(facts, tree) if pid == task.pid or _has_instance(facts, pid, poll)]
    restorer = min(order, key=lambda pid: facts.snapshot.processes[pid].process.pid_inside)
    return task.pid in {order[0], restorer}


def _as_dumped(facts: Facts, tree: Tree) -> Iterator[Pid]:
    """The processes of a tree in the order in which CRIU dumps them: each before its children, and these at once."""
    known = {process.pid for process in tree.processes}
    waiting = [tree.root]
    while waiting:
        pid = waiting.pop()
        known.discard(pid)
        yield pid
        children = facts.snapshot.processes[pid].children
        waiting += (child for child in reversed(children) if child in known)
    # Born to it while it was looked at.
    yield from known


def _has_instance(facts: Facts, pid: Pid, poll: Hold) -> bool:
    return any(
        hold.target == _INSTANCE and _is_same_file(poll, hold)
        for hold in facts.descriptors(facts.snapshot.processes[pid])
    )


def _is_same_file(one: Hold, other: Hold) -> bool:
    return (
        _KCMP is not None
        and int(_libc.syscall(_KCMP, one.pid, other.pid, _KCMP_FILE, fd_of(one), fd_of(other))) == 0
    )


def _is_target(pid: Pid, fd: int, poll: int, number: int) -> bool:
    if _KCMP is None:
        return True
    slot = (ctypes.c_uint32 * 3)(poll, number, 0)
    return int(_libc.syscall(_KCMP, pid, pid, _KCMP_EPOLL_TFD, fd, slot)) == 0


RULES: Final = (
    Rule(
        name="epoll-target",
        severity=Severity.BLOCKER,
        title="An epoll instance that waits for a file which its process has closed, and another one has open.",
        effect="The dump fails, and the workload runs on; where a child that has inherited the instance has a lower pid "
        "than its parent, and has closed the file, the restore fails.",
        remedy="Let it take the file out of the epoll instance (EPOLL_CTL_DEL) before it closes it.",
        source="criu/eventpoll.c (flush_eventpoll_dinfo_queue, eventpoll_post_open); seen",
        find=_lost_target,
    ),
)
