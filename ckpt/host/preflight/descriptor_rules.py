"""Rules over descriptors that lead to something outside of the workload, or that are open in a way CRIU cannot redo.

Source: criu/files-reg.c, dump_one_reg_file() and check_path_remap(); criu/pidfd.c; criu/namespaces.c,
dump_one_ns_file(); open(2) for O_PATH; pidfd_open(2) for the lines of its fdinfo.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from typing import Final

from ckpt.host.inodes.fuse.living import is_in_view
from ckpt.host.inspection.holdings import Hold
from ckpt.host.inspection.processes import ProcessFacts
from ckpt.host.preflight.facts import Facts, fd_of, named, subject
from ckpt.host.preflight.held_descriptors import descriptors, is_memory_device
from ckpt.host.preflight.rule import Found, Rule
from ckpt.model.findings import Severity
from ckpt.units import Pid

_O_PATH: Final = 0o10000000
_PIDFD_THREAD: Final = os.O_EXCL
_ENDED: Final = "-1"
_PROC: Final = re.compile(r"/proc/([0-9]+)(?:/task/([0-9]+))?(?:/|$| \(deleted\)$)")

_FAILS: Final = "The dump fails, and the workload runs on."


def _foreign_mount(facts: Facts) -> Iterator[Found]:
    held = facts.once(descriptors)
    for task, hold in (*held.files, *held.pipes, *held.characters):
        if stat.S_ISCHR(hold.status.st_mode) and not is_memory_device(hold):
            continue
        mounts = facts.once(_seen_mounts)[task.pid]
        mount = facts.mount_id(hold)
        if mounts and mount is not None and mount not in mounts:
            yield Found(
                pid=task.pid,
                subject=subject(hold),
                message=f"{task.label} holds fd {fd_of(hold)} → {hold.path}, which lies on a mount that it does not see",
            )


def _seen_mounts(facts: Facts) -> dict[Pid, frozenset[int]]:
    """The mounts among which CRIU looks for the files of a process."""
    found: dict[Pid, frozenset[int]] = {}
    for tree in facts.snapshot.trees:
        root = facts.snapshot.processes.get(tree.root)
        mounts: frozenset[int] = frozenset()
        if root is not None and not root.ended:
            # A process that changed its root sees few mounts; CRIU looks with its own eyes, if it lives among them.
            place = tree.root if tree.owns("mnt") or is_in_view(tree.root) else "self"
            mounts = frozenset(mount.mount_id for mount in facts.mounts(place))
        found |= {process.pid: mounts for process in tree.processes}
    return found


def _pidfd_outside(facts: Facts) -> Iterator[Found]:
    trees = {process.pid: tree for tree in facts.snapshot.trees for process in tree.processes}
    for task, hold in facts.once(descriptors).pidfds:
        other = facts.fdinfo(hold).get("Pid", _ENDED)
        if other != _ENDED and trees.get(Pid(int(other))) is not trees[task.pid]:
            yield Found(
                pid=task.pid,
                subject=subject(hold),
                message=f"{named(task, hold)} of process {other}, which is not in its tree",
            )


def _pidfd_of_thread(facts: Facts) -> Iterator[Found]:
    for task, hold in facts.once(descriptors).pidfds:
        if int(facts.fdinfo(hold).get("flags", "0"), 8) & _PIDFD_THREAD:
            yield Found(
                pid=task.pid,
                subject=subject(hold),
                message=f"{named(task, hold)} of a thread, which CRIU cannot dump",
            )


def _namespace_outside(facts: Facts) -> Iterator[Found]:
    known = {inode for task in facts.tasks for inode in task.namespaces.values()}
    for task, hold in facts.once(descriptors).namespaces:
        if hold.status.st_ino not in known:
            yield Found(
                pid=task.pid,
                subject=subject(hold),
                message=f"{named(task, hold)}, a namespace in which no process of the workload lives",
            )


def _opened_as_path(facts: Facts) -> Iterator[Found]:
    held = facts.once(descriptors)
    for task, hold in (*held.sockets, *held.pipes, *held.characters):
        if is_memory_device(hold):
            continue
        if int(facts.fdinfo(hold).get("flags", "0"), 8) & _O_PATH:
            yield Found(
                pid=task.pid,
                subject=subject(hold),
                message=f"{named(task, hold)}, opened by O_PATH, and CRIU asks what only an opened one answers",
            )


def _thread_of_proc(facts: Facts) -> Iterator[Found]:
    for task, hold, pid, thread in facts.once(_of_proc):
        # As the task counts: it may have a PID namespace of its own.
        process = f"/proc/{task.pid}/root/proc/{pid}"
        if thread and os.path.exists(process) and not os.path.exists(f"{process}/task/{thread}"):
            yield Found(
                pid=task.pid,
                subject=subject(hold),
                message=f"{named(task, hold)}, of a thread that has ended",
            )


def _process_of_proc(facts: Facts) -> Iterator[Found]:
    for task, hold, pid, _ in facts.once(_of_proc):
        if task.namespaces["pid"] != facts.own_namespaces["pid"] or pid == 1 or pid in facts.pids:
            continue
        # Of a process that has ended CRIU makes another one for a moment.
        if os.path.exists(f"/proc/{pid}"):
            yield Found(
                pid=task.pid,
                subject=subject(hold),
                message=f"{named(task, hold)}, of a process that is not in the workload",
                remedy=f"Process {pid} must run when it is restored, or let it close the file.",
            )


def _of_proc(facts: Facts) -> tuple[tuple[ProcessFacts, Hold, Pid, str], ...]:
    """Files of /proc/PID that are open, with the pid and, if it is one of a thread, the tid in their path."""
    return tuple(
        (task, hold, Pid(int(match[1])), match[2] or "")
        for task, hold in facts.once(descriptors).files
        if (match := _PROC.match(hold.target))
    )


RULES: Final = (
    Rule(
        name="foreign-mount",
        severity=Severity.BLOCKER,
        title="A file on a mount that is not in the workload's mount namespace, or was unmounted (also: mqueues).",
        effect=_FAILS,
        remedy="Let it be opened inside its mount namespace; what a shell redirects is opened outside.",
        source='criu/files-reg.c ("Can\'t lookup mount"); seen',
        find=_foreign_mount,
    ),
    Rule(
        name="pidfd-outside",
        severity=Severity.BLOCKER,
        title="A pidfd of a process that is not in the same tree.",
        effect=_FAILS,
        remedy="Let it close the pidfd, or dump both processes in one tree.",
        source="criu/pidfd.c; seen",
        find=_pidfd_outside,
    ),
    Rule(
        name="pidfd-of-thread",
        severity=Severity.BLOCKER,
        title="A pidfd that was opened with PIDFD_THREAD.",
        effect=_FAILS,
        remedy="Let it close the pidfd before the dump.",
        source="criu/pidfd.c; seen",
        find=_pidfd_of_thread,
    ),
    Rule(
        name="namespace-outside",
        severity=Severity.BLOCKER,
        title="A descriptor of a namespace in which no process of the workload lives.",
        effect=_FAILS,
        remedy="Let it close the descriptor (what ip-netns and nsenter keep open), or let a process live there.",
        source="criu/namespaces.c (dump_one_ns_file); seen",
        find=_namespace_outside,
    ),
    Rule(
        name="opened-as-path",
        severity=Severity.BLOCKER,
        title="A socket, a named pipe or a terminal that was opened by O_PATH.",
        effect="The dump fails (a terminal of the workload's own: the restore).",
        remedy="Let it close that descriptor before the dump.",
        source="criu/sockets.c, criu/pipes.c, criu/tty.c; seen",
        find=_opened_as_path,
    ),
    Rule(
        name="proc-of-thread",
        severity=Severity.BLOCKER,
        title="A file of /proc/PID/task/TID of a thread that has ended.",
        effect="The dump succeeds, and the restore fails: the workload would be lost.",
        remedy="Let it close the file before the dump.",
        source="criu/files-reg.c (check_path_remap), which looks at the process alone; seen",
        find=_thread_of_proc,
    ),
    Rule(
        name="proc-outside",
        severity=Severity.WARNING,
        title="A file of /proc/PID of a process that is not in the workload.",
        effect="The restore fails if that process has ended by then, and shows another one if its pid was used again.",
        remedy="That process must run when it is restored.",
        source="criu/files-reg.c (check_path_remap); seen",
        find=_process_of_proc,
    ),
)
