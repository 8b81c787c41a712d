"""Open descriptors that CRIU cannot dump, by what they lead to.

Source: criu/files.c, dump_one_file() and dump_chrdev(); criu/files-reg.c ("Can't lookup mount");
criu/pidfd.c; pidfd_open(2) for the lines of its fdinfo.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

from ckpt.host.inodes.fuse.living import is_in_view
from ckpt.host.inspection.holdings import Hold, Holdings
from ckpt.host.inspection.processes import ProcessFacts
from ckpt.host.inspection.snapshot import Snapshot
from ckpt.host.mounts import mounts_of
from ckpt.model.inodes import RoleKind
from ckpt.model.workload import Tree

_DUMPABLE_ANONYMOUS: Final = frozenset(
    ("eventfd", "eventpoll", "signalfd", "timerfd", "inotify", "fanotify", "pidfd")
)
_MEMORY_DEVICES: Final = 1
_MISCELLANEOUS: Final = 10
_TUN, _AUTOFS = 200, 235


def about_descriptors(facts: ProcessFacts, holdings: Holdings) -> Iterator[str]:
    """Anonymous inodes and devices that CRIU does not know."""
    own_network = facts.namespaces["net"] != os.stat("/proc/self/ns/net").st_ino
    for hold in holdings.holds:
        if hold.kind is not RoleKind.FD:
            continue
        kind = stat.S_IFMT(hold.status.st_mode)
        if hold.target.startswith("anon_inode:"):
            name = hold.target.partition(":")[2]
            if name.strip("[]") not in _DUMPABLE_ANONYMOUS:
                yield f"{_named(facts, hold)}{advice(name)}"
        elif kind == stat.S_IFBLK:
            yield f"{_named(facts, hold)}, a disk, which CRIU cannot dump"
        elif kind == stat.S_IFCHR and _is_refused_device(hold.status.st_rdev, own_network=own_network):
            yield f"{_named(facts, hold)}, a device, which CRIU cannot dump"


def about_mounts(tree: Tree, snapshot: Snapshot) -> Iterator[str]:
    """Files on a mount that the tree does not see, and pidfds of processes that it does not have."""
    if tree.root not in snapshot.processes or snapshot.processes[tree.root].ended:
        return
    mounts: set[int] = set()
    with suppress(OSError):
        # A process that changed its root sees few mounts; CRIU looks with its own eyes, if it lives among them.
        has_own = tree.owns("mnt") or is_in_view(tree.root)
        mounts = {mount.mount_id for mount in mounts_of(tree.root if has_own else "self")}
    members = {str(process.pid) for process in tree.processes}
    for process in tree.processes:
        facts = snapshot.processes[process.pid]
        for hold in snapshot.holdings[process.pid].holds:
            if hold.kind is not RoleKind.FD:
                continue
            if _is_on_a_mount(hold):
                mount = _fdinfo(hold).get("mnt_id", "")
                if mounts and mount and int(mount) not in mounts:
                    yield (
                        f"{_named(facts, hold)}, which lies on a mount that it does not see: let it be opened "
                        "inside its mount namespace"
                    )
            elif hold.target in {"anon_inode:[pidfd]", "pidfd"} or hold.target.startswith("pidfd:"):
                # -1: that process has ended.
                other = _fdinfo(hold).get("Pid", "-1")
                if other != "-1" and other not in members:
                    yield f"{_named(facts, hold)} of process {other}, which is not in its tree"


def advice(name: str) -> str:
    """How a sentence about something that CRIU does not know goes on."""
    if "io_uring" in name:
        return ": run it without io_uring (for libuv UV_USE_IO_URING=0, or where that does not help sysctl kernel.io_uring_disabled=2)"
    return ", which CRIU cannot dump"


def _named(facts: ProcessFacts, hold: Hold) -> str:
    return f"{facts.label} holds fd {hold.detail.partition(' ')[0]} → {hold.path}"


def _is_refused_device(number: int, *, own_network: bool) -> bool:
    # Of other majors some are terminals, and some (GPUs) are known to plug-ins of CRIU.
    if os.major(number) != _MISCELLANEOUS or os.minor(number) == _AUTOFS:
        return False
    return os.minor(number) != _TUN or not own_network


def _is_on_a_mount(hold: Hold) -> bool:
    """Whether CRIU looks for its mount: memfds and terminals are found in other ways."""
    mode = hold.status.st_mode
    if stat.S_ISCHR(mode):
        return os.major(hold.status.st_rdev) == _MEMORY_DEVICES
    return (
        hold.is_file and (stat.S_ISREG(mode) or stat.S_ISDIR(mode)) and not hold.target.startswith("/memfd:")
    )


def _fdinfo(hold: Hold) -> dict[str, str]:
    fd = hold.detail.partition(" ")[0]
    with (
        suppress(OSError),
        open(f"/proc/{hold.pid}/fdinfo/{fd}", encoding="ascii", errors="replace") as stream,
    ):
        return {name: value.strip() for name, _, value in (line.partition(":") for line in stream)}
    return {}
