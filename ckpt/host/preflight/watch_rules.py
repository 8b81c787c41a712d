"""Rules over what is watched by inotify(7) and fanotify(7).

CRIU knows a watched inode by its file handle alone: it must be able to open the handle, and on file systems in memory
to find the path as well. A restore needs the path on all of them, but for a deleted file that CRIU makes anew, as the
tree has it open.
Source: criu/fsnotify.c, check_open_handle(); criu/irmap.c; proc_pid_fdinfo(5); include/uapi/linux/fanotify.h.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum, auto
from functools import cache
from typing import Final

from ckpt.host.inspection import syscalls
from ckpt.host.inspection.holdings import Hold
from ckpt.host.inspection.processes import ProcessFacts
from ckpt.host.mounts import Mount
from ckpt.host.preflight.facts import Facts, named, subject
from ckpt.host.preflight.held_descriptors import descriptors, is_in_memory
from ckpt.host.preflight.rule import Found, Rule
from ckpt.model.findings import Severity
from ckpt.units import Pid

_MARK: Final = re.compile(
    r"(inotify|fanotify) (?:wd:\S+ )?ino:([0-9a-f]+) sdev:([0-9a-f]+) .*mask:([0-9a-f]+) "
)
_HANDLE: Final = re.compile(r"fhandle-type:([0-9a-f]+) f_handle:([0-9a-f]+)")
_MASK: Final = re.compile(r"fanotify .*\bmask:([0-9a-f]+) ")
_OF_FILESYSTEM: Final = re.compile(r"fanotify sdev:")
_PERMISSION: Final = 0x10000 | 0x20000 | 0x40000 | 0x100000
"""FAN_OPEN_PERM, FAN_ACCESS_PERM, FAN_OPEN_EXEC_PERM, FAN_PRE_ACCESS."""

_MINOR_BITS: Final = 20
_IN_MEMORY: Final = frozenset(("tmpfs", "devtmpfs"))
_SEARCHED: Final = ("/etc", "/var/spool", "/lib/udev")
"""Where CRIU looks for an inode whose handle it cannot open."""

_WATCHERS: Final = ("anon_inode:inotify", "inotify", "anon_inode:[fanotify]")


class _Reach(Enum):
    """Whether CRIU finds a watched file again; `NAMELESS`: not by a path."""

    FOUND = auto()
    NAMELESS = auto()
    UNREACHABLE = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Watch:
    task: ProcessFacts
    hold: Hold
    inode: int
    device: str
    filesystem: str
    reach: _Reach


def _unreachable(facts: Facts) -> Iterator[Found]:
    for watch in facts.once(_watches):
        if watch.reach is _Reach.UNREACHABLE:
            where = f"inode {watch.inode} of {watch.filesystem or f'device {watch.device}'}"
            yield Found(
                pid=watch.task.pid,
                subject=f"{subject(watch.hold)}, inode {watch.inode}",
                message=f"{named(watch.task, watch.hold)}, which watches {where}, and CRIU cannot find that file",
            )


def _nameless(facts: Facts) -> Iterator[Found]:
    for watch in facts.once(_watches):
        if watch.reach is not _Reach.NAMELESS:
            continue
        where = f"{subject(watch.hold)}, inode {watch.inode}"
        said = f"{named(watch.task, watch.hold)}, which watches"
        held = _held_in_tree(facts, watch)
        if held is None:
            yield Found(
                pid=watch.task.pid,
                subject=where,
                message=f"{said} a file (inode {watch.inode}) that a restore will not find: it was deleted, or another one "
                "is mounted over it",
            )
        # CRIU leaves a directory that it made anew be; a file's name it takes away again, and the watch with it.
        elif not stat.S_ISDIR(held.status.st_mode):
            yield Found(
                pid=watch.task.pid,
                subject=where,
                severity=Severity.WARNING,
                message=f"{said} the deleted file {held.path}, and that watch ends at a restore",
                remedy="Let it watch the file anew after a restore.",
            )


def _held_in_tree(facts: Facts, watch: _Watch) -> Hold | None:
    """How the tree of a watching process has the deleted file that it watches open, or mapped; None if it has not."""
    for tree in facts.snapshot.trees:
        pids = [process.pid for process in tree.processes]
        for pid in pids if watch.task.pid in pids else ():
            for hold in facts.snapshot.holdings[pid].holds:
                status = hold.status
                # The device is not compared: btrfs gives watches another one.
                if status.st_ino == watch.inode and not status.st_nlink and not is_in_memory(hold):
                    return hold
    return None


def _permission(facts: Facts) -> Iterator[Found]:
    for task, hold in _held_watchers(facts):
        if any(
            int(match[1], 16) & _PERMISSION
            for line in facts.fdinfo_lines(hold)
            if (match := _MASK.match(line))
        ):
            yield Found(
                pid=task.pid,
                subject=subject(hold),
                message=f"{named(task, hold)}, which must permit what others open or read, and cannot while it is frozen",
            )


def _of_filesystem(facts: Facts) -> Iterator[Found]:
    for task, hold in _held_watchers(facts):
        if any(_OF_FILESYSTEM.match(line) for line in facts.fdinfo_lines(hold)):
            yield Found(
                pid=task.pid,
                subject=subject(hold),
                message=f"{named(task, hold)}, which watches a whole file system, and that mark is not restored",
            )


def _held_watchers(facts: Facts) -> Iterator[tuple[ProcessFacts, Hold]]:
    for task, hold in facts.once(descriptors).anonymous:
        if hold.target in _WATCHERS:
            yield task, hold


def _watches(facts: Facts) -> tuple[_Watch, ...]:
    """The watches on inodes; each inode is looked for once."""
    known: dict[tuple[Pid | str, str, int], tuple[_Reach, str]] = {}
    searched = cache(_searched)
    found: list[_Watch] = []
    for task, hold in _held_watchers(facts):
        place: Pid | str = task.pid if task.namespaces["mnt"] != facts.own_namespaces["mnt"] else "self"
        for line in facts.fdinfo_lines(hold):
            mark, handle = _MARK.match(line), _HANDLE.search(line)
            if mark is None:
                continue
            inode, number = int(mark[2], 16), int(mark[3], 16)
            device = f"{number >> _MINOR_BITS}:{number & (1 << _MINOR_BITS) - 1}"
            key = (place, device, inode)
            if key not in known:
                mounts = [mount for mount in facts.mounts(place) if mount.device == device]
                known[key] = (
                    _reach(place, mounts, inode, handle, searched),
                    mounts[0].filesystem if mounts else "",
                )
            reach, filesystem = known[key]
            found.append(
                _Watch(task=task, hold=hold, inode=inode, device=device, filesystem=filesystem, reach=reach)
            )
    return tuple(found)


def _reach(
    place: Pid | str,
    mounts: list[Mount],
    inode: int,
    handle: re.Match[str] | None,
    searched: Callable[[Pid | str], frozenset[tuple[str, int]]],
) -> _Reach:
    opened = False
    for mount in mounts if handle else ():
        assert handle is not None
        root = f"/proc/{place}/root"
        with suppress(OSError):
            directory = os.open(root + mount.mountpoint, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                fd = syscalls.open_by_handle(
                    directory, int(handle[1], 16), bytes.fromhex(handle[2]), os.O_PATH
                )
            finally:
                os.close(directory)
            try:
                opened = True
                path = os.readlink(f"/proc/self/fd/{fd}")
            finally:
                os.close(fd)
            if os.stat(root + path).st_ino == inode:
                return _Reach.FOUND
    if opened:
        memory = any(mount.filesystem in _IN_MEMORY for mount in mounts)
        return _Reach.UNREACHABLE if memory else _Reach.NAMELESS
    files = searched(place)
    return _Reach.FOUND if any((mount.device, inode) in files for mount in mounts) else _Reach.UNREACHABLE


def _searched(place: Pid | str) -> frozenset[tuple[str, int]]:
    """The files among which CRIU searches, by device and inode number: thousands, which are looked through once."""
    root = f"/proc/{place}/root"
    found: set[tuple[str, int]] = set()
    for top in _SEARCHED:
        for directory, names, files in os.walk(root + top):
            for name in (".", *names, *files):
                with suppress(OSError):
                    status = os.lstat(f"{directory}/{name}")
                    device = f"{os.major(status.st_dev)}:{os.minor(status.st_dev)}"
                    if not stat.S_ISLNK(status.st_mode):
                        found.add((device, status.st_ino))
    return frozenset(found)


RULES: Final = (
    Rule(
        name="watch-unreachable",
        severity=Severity.BLOCKER,
        title="An inotify or fanotify watch on a file that CRIU cannot find: in /proc or /dev/pts, or one of a file "
        "system in memory whose name is gone.",
        effect="The dump fails, and the workload runs on.",
        remedy="Let it end that watch before the dump.",
        source="criu/fsnotify.c (check_open_handle), criu/irmap.c; seen on proc, devpts and tmpfs",
        find=_unreachable,
    ),
    Rule(
        name="fanotify-permission",
        severity=Severity.BLOCKER,
        title="A fanotify group that is asked for permission when files are opened or read.",
        effect="Who opens a file that it watches waits until it answers, and a frozen one does not: the dump hangs.",
        remedy="Let it end these marks before the dump; a scanner of files belongs to the host, not to a workload.",
        source="fanotify(7); seen",
        find=_permission,
    ),
    Rule(
        name="fanotify-filesystem",
        severity=Severity.WARNING,
        title="A fanotify mark on a whole file system (FAN_MARK_FILESYSTEM).",
        effect="The mark is lost: the restored workload gets no events of that file system.",
        remedy="Let it set the mark again after a restore.",
        source="criu/proc_parse.c (parse_fdinfo), which skips it; seen",
        find=_of_filesystem,
    ),
    Rule(
        name="watch-nameless",
        severity=Severity.BLOCKER,
        title="An inotify or fanotify watch on a file that was deleted, or that another one is mounted over; a warning "
        "only where a process of the same tree has the deleted file open.",
        effect="The dump succeeds, and the restore fails. Where the file is open, the watch ends at the restore, and the "
        "workload is told that the file was deleted; the watch on a directory stays.",
        remedy="Let it end that watch before the dump.",
        source="criu/fsnotify.c (get_mark_path); seen on ext4",
        find=_nameless,
    ),
)
