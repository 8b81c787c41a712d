"""Rules over the namespaces that a workload lives in.

Source: namespaces(7), cgroups(7); criu/namespaces.c, dump_task_ns_ids(); criu/mount.c; criu/pstree.c.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Final

from ckpt.errors import CannotCheckpoint
from ckpt.host import mounts
from ckpt.host.inspection.processes import ProcessFacts
from ckpt.host.preflight.facts import NAMESPACES, Facts
from ckpt.host.preflight.rule import Find, Found, Rule, When, of_each_task
from ckpt.model.findings import Severity
from ckpt.model.workload import Tree
from ckpt.units import Pid


def _of_each_tree(find: Callable[[Facts, Tree, ProcessFacts], Iterator[Found]]) -> Find:
    def find_all(facts: Facts) -> Iterator[Found]:
        for tree in facts.snapshot.trees:
            root = facts.snapshot.processes[tree.root]
            if not root.ended:
                yield from find(facts, tree, root)

    return find_all


def _nested(facts: Facts, tree: Tree, root: ProcessFacts) -> Iterator[Found]:
    for process in tree.processes[1:]:
        task = facts.snapshot.processes[process.pid]
        if task.ended:
            continue
        for kind in NAMESPACES:
            if task.namespaces[kind] != root.namespaces[kind]:
                yield Found(
                    pid=task.pid,
                    subject=f"{kind}:[{task.namespaces[kind]}]",
                    message=f"{task.label} lives in another {kind} namespace than its tree's root, {root.label}",
                )


def _time_for_children(_facts: Facts, task: ProcessFacts) -> Iterator[Found]:
    inode = os.stat(f"/proc/{task.pid}/ns/time_for_children").st_ino
    if inode != task.namespaces["time"]:
        yield Found(
            pid=task.pid,
            subject=f"time_for_children:[{inode}]",
            message=f"{task.label} has made a time namespace for its children, in which it does not live itself",
        )


def _user(_facts: Facts, tree: Tree, root: ProcessFacts) -> Iterator[Found]:
    if tree.owns("user"):
        yield Found(
            pid=root.pid,
            subject=f"user:[{root.namespaces['user']}]",
            message=f"{root.label} has a user namespace of its own, which a restore cannot bring back",
        )


def _other_root(facts: Facts, tree: Tree, root: ProcessFacts) -> Iterator[Found]:
    if tree.owns("mnt") and _root_shown(facts, root.pid) not in (None, _root_shown(facts, "self")):
        yield Found(
            pid=root.pid,
            subject=f"mnt:[{root.namespaces['mnt']}]",
            message=f"{root.label} has another root directory in a mount namespace of its own (a container)",
        )


def _root_shown(facts: Facts, pid: Pid | str) -> tuple[str, str] | None:
    found = [mount for mount in facts.mounts(pid) if mount.mountpoint == "/"]
    return (found[-1].device, found[-1].root) if found else None


def _covers(facts: Facts, tree: Tree, root: ProcessFacts) -> Iterator[Found]:
    if tree.owns("mnt"):
        try:
            mounts.choose_external(root.label, facts.mounts(root.pid), facts.mounts("self"))
        except CannotCheckpoint as error:
            for reason in error.reasons:
                yield Found(
                    pid=root.pid,
                    subject=f"mnt:[{root.namespaces['mnt']}]",
                    message=f"{root.label} cannot be restored: {reason}",
                )


def _not_init(_facts: Facts, tree: Tree, root: ProcessFacts) -> Iterator[Found]:
    if tree.owns("pid") and root.process.pid_inside != 1:
        yield Found(
            pid=root.pid,
            subject=f"pid:[{root.namespaces['pid']}]",
            message=f"{root.label} is not the init of its PID namespace, whose other processes stand outside",
        )


RULES: Final = (
    Rule(
        name="nested-namespace",
        severity=Severity.BLOCKER,
        title="a process in another namespace than the root of its tree",
        effect="CRIU refuses to dump it; of mount and network namespaces the dump may work, and the restore fails, so "
        "that the workload would be lost.",
        remedy="End that process first, or let it run without its sandbox.",
        source="namespaces(7); criu/namespaces.c, criu/pstree.c",
        find=_of_each_tree(_nested),
        when=When.ALWAYS,
    ),
    Rule(
        name="time-for-children",
        severity=Severity.BLOCKER,
        title="a process that made a time namespace for its children (unshare --time)",
        effect='CRIU takes it for a nested time namespace ("Can\'t dump nested time namespace"): the dump fails.',
        remedy="Let it execute the program in a child, and checkpoint that one.",
        source="time_namespaces(7); criu/namespaces.c, dump_task_ns_ids()",
        find=of_each_task(_time_for_children),
    ),
    Rule(
        name="user-namespace",
        severity=Severity.BLOCKER,
        title="a user namespace (rootless containers, sandboxes)",
        effect="The dump works and the restore fails: alone, as CRIU finds no /proc of its own; with PID and mount "
        "namespaces, as it may not join the time namespace that ckpt gives the workload. The workload would be lost.",
        remedy="Start it without a user namespace.",
        source="user_namespaces(7), time_namespaces(7); criu/util.c, criu/cr-restore.c",
        find=_of_each_tree(_user),
        when=When.ALWAYS,
    ),
    Rule(
        name="other-root",
        severity=Severity.BLOCKER,
        title="a mount namespace with another root than the host's: a container",
        effect="ckpt restores mount namespaces over the host's root only: the restore fails.",
        remedy="Dump it with the tool that made it (podman container checkpoint).",
        source="pivot_root(2); ckpt/host/mounts.py",
        find=_of_each_tree(_other_root),
        when=When.ALWAYS,
    ),
    Rule(
        name="covered-mount",
        severity=Severity.BLOCKER,
        title="a mount namespace in which a mount of the workload's own covers one of the host's",
        effect="CRIU knows mounts by their place alone: ckpt refuses the dump, as the restore would show the host's.",
        remedy="Let it mount that at another place, or unmount the host's there first.",
        source="criu/mount.c; ckpt/host/mounts.py",
        find=_of_each_tree(_covers),
    ),
    Rule(
        name="not-pid-init",
        severity=Severity.BLOCKER,
        title="a tree in a PID namespace of its own whose root is not its init",
        effect="CRIU restores a PID namespace with its init only: the dump fails.",
        remedy="Name the init of the namespace, or the cgroup that has it.",
        source="pid_namespaces(7); criu/pstree.c",
        find=_of_each_tree(_not_init),
        when=When.ALWAYS,
    ),
)
