"""Rules over files: those whose name is gone or leads elsewhere, and those that must be there at a restore.

Source: criu/files-reg.c, check_path_remap(), dump_ghost_remap() and dump_linked_remap(); criu/mount.c,
mnt_is_overmounted().
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

from ckpt.host.inspection.holdings import Hold, Key
from ckpt.host.inspection.processes import ProcessFacts
from ckpt.host.mounts import Mount
from ckpt.host.preflight.facts import Facts, fd_of
from ckpt.host.preflight.held_descriptors import descriptors, is_in_memory, is_memory_device
from ckpt.host.preflight.overlays import is_of_upper_layer
from ckpt.host.preflight.rule import Found, Rule, When
from ckpt.host.volumes.loop import is_ours
from ckpt.model.findings import Severity
from ckpt.model.inodes import RoleKind
from ckpt.units import DeviceNumber, Pid, human_bytes

_BLOCK_BYTES: Final = 512
_SHARED_MEMORY: Final = "/dev/shm/"  # noqa: S108 - not a place for temporary files of ours
_NETWORK: Final = ("nfs", "cifs", "smb3", "9p", "ceph", "afs", "gfs2", "ocfs2", "lustre", "glusterfs", "fuse")
_FUSE_CONTROL: Final = "fusectl"
_NAMED_MAX: Final = 3

_BY_PATH: Final = frozenset((stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO))
"""What CRIU opens by its path; terminals and sockets it makes."""

_FAILS: Final = "The dump fails, and the workload runs on."


def _above_ghost_limit(facts: Facts) -> Iterator[Found]:
    limit = facts.options.ghost_limit_bytes
    for task, hold in facts.once(_held_files):
        size = hold.status.st_blocks * _BLOCK_BYTES
        if hold.status.st_nlink == 0 and size > limit:
            yield Found(
                pid=task.pid,
                subject=_subject(hold),
                message=f"{task.label} {_verb(hold)} {hold.path}, which was deleted and has {human_bytes(size)}: more "
                f"than the limit of {human_bytes(limit)}",
                remedy=f"Give --ghost-limit {size >> 20 or 1}M or more, or let it close the file.",
            )


def _not_linkable(facts: Facts) -> Iterator[Found]:
    for task, hold in facts.once(_held_files):
        if (
            hold.status.st_nlink
            and hold.target.endswith(" (deleted)")
            and hold.deleted
            and _filesystem(facts, hold) == "overlay"
            and not is_of_upper_layer(hold.link)
        ):
            yield Found(
                pid=task.pid,
                subject=_subject(hold),
                message=f"{task.label} {_verb(hold)} {hold.path}, which was deleted and is of a lower layer of an overlay",
            )


def _covered(facts: Facts) -> Iterator[Found]:
    known: dict[str, Key | None] = {}
    for task, hold in facts.once(_held_files):
        if not (stat.S_IFMT(hold.status.st_mode) in _BY_PATH or is_memory_device(hold)):
            continue
        path = hold.target
        if task.namespaces["mnt"] != facts.own_namespaces["mnt"]:
            path = f"/proc/{task.pid}/root{path}"
        if path not in known:
            known[path] = _key_of(path)
        if known[path] == hold.key or hold.deleted or hold.target.startswith("/proc/"):
            continue
        if not _is_elsewhere(hold, path):
            continue
        leads = "nowhere" if known[path] is None else "to another file"
        yield Found(
            pid=task.pid,
            subject=_subject(hold),
            message=f"{task.label} {_verb(hold)} {hold.path}, and that path leads {leads}: something is mounted over it",
        )


def _program_replaced(facts: Facts) -> Iterator[Found]:
    for task in facts.tasks:
        for hold in facts.holdings(task).holds:
            if hold.kind is RoleKind.EXE and not is_in_memory(hold) and hold.deleted:
                yield Found(
                    pid=task.pid,
                    subject=hold.path,
                    message=f"{task.label} runs {hold.path}, which was deleted or replaced since it was started",
                )


def _elsewhere(facts: Facts) -> Iterator[Found]:
    found: dict[tuple[str, str], list[str]] = {}
    for task, hold in facts.once(_held_files):
        mount = _mount(facts, task, hold)
        if mount and mount.filesystem.startswith(_NETWORK) and mount.filesystem != _FUSE_CONTROL:
            found.setdefault((mount.mountpoint, mount.filesystem), []).append(hold.path)
    for (mountpoint, filesystem), paths in found.items():
        yield Found(
            pid=None,
            subject=mountpoint,
            message=f"{_some(paths)} lie on {mountpoint}, a {filesystem} file system, whose server is not in the images",
        )


def _pinned(facts: Facts) -> Iterator[Found]:
    written: dict[Pid, list[str]] = {}
    # What a child has inherited is told of its parent alone.
    told: set[str] = set()
    for task, hold in facts.once(descriptors).files:
        if hold.path not in told and _is_pinned(hold):
            told.add(hold.path)
            written.setdefault(task.pid, []).append(hold.path)
    for pid, paths in written.items():
        label = facts.snapshot.processes[pid].label
        yield Found(
            pid=pid,
            subject=_some(paths),
            message=f"{label} writes to {_some(paths)}, which must be as they are when it is restored",
        )


def _is_pinned(hold: Hold) -> bool:
    flags = hold.detail.partition(" ")[2]
    return (
        flags in {"O_RDWR", "O_RDWR|O_APPEND", "O_WRONLY"}
        and not hold.target.startswith(("/proc/", "/sys/", _SHARED_MEMORY))
        and not is_ours(DeviceNumber(hold.status.st_dev))  # a volume's files are kept with it
        and hold.status.st_nlink > 0
    )


def _held_files(facts: Facts) -> tuple[tuple[ProcessFacts, Hold], ...]:
    """All holds on files, once for each file of a process and way of holding it; not on memory."""
    found: dict[object, tuple[ProcessFacts, Hold]] = {}
    for task in facts.tasks:
        for hold in facts.holdings(task).holds:
            if hold.is_file and not is_in_memory(hold):
                found.setdefault((hold.pid, hold.key, hold.target), (task, hold))
    return tuple(found.values())


def _subject(hold: Hold) -> str:
    return f"fd {fd_of(hold)} → {hold.target}" if hold.kind is RoleKind.FD else hold.target


def _verb(hold: Hold) -> str:
    match hold.kind:
        case RoleKind.FD:
            return f"holds fd {fd_of(hold)} →"
        case RoleKind.MAP:
            return "maps"
        case RoleKind.EXE:
            return "runs"
        case RoleKind.CWD:
            return "works in"
        case RoleKind.ROOT:
            return "has the root directory"
        case RoleKind.WATCH | RoleKind.LOCK | RoleKind.BOUND | RoleKind.ABOVE:
            return "uses"


def _is_elsewhere(hold: Hold, path: str) -> bool:
    """Whether the file is held by its name yet, and the path leads to another one, at one moment.

    A program that makes and deletes files of one name all the time (a journal of sqlite) holds another one at each look.
    One that we hold, too, keeps its number to itself, and where it has its name at the end, it had it at the lookup.
    """
    try:
        fd = os.open(hold.link, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return False  # closed meanwhile
    try:
        status = os.fstat(fd)
        return (
            (status.st_dev, status.st_ino) == hold.key
            and _key_of(path) != hold.key
            and os.readlink(f"/proc/self/fd/{fd}") == hold.target
        )
    finally:
        os.close(fd)


def _key_of(path: str) -> Key | None:
    with suppress(OSError):
        status = os.stat(path, follow_symlinks=False)
        return (status.st_dev, status.st_ino)
    return None


def _mount(facts: Facts, task: ProcessFacts, hold: Hold) -> Mount | None:
    device = f"{os.major(hold.status.st_dev)}:{os.minor(hold.status.st_dev)}"
    place = task.pid if task.namespaces["mnt"] != facts.own_namespaces["mnt"] else "self"
    return next((mount for mount in facts.mounts(place) if mount.device == device), None)


def _filesystem(facts: Facts, hold: Hold) -> str:
    mount = _mount(facts, facts.snapshot.processes[hold.pid], hold)
    return mount.filesystem if mount else ""


def _some(paths: list[str]) -> str:
    names = list(dict.fromkeys(paths))
    more = f" and {len(names) - _NAMED_MAX} more" if len(names) > _NAMED_MAX else ""
    return ", ".join(names[:_NAMED_MAX]) + more


RULES: Final = (
    Rule(
        name="ghost-limit",
        severity=Severity.BLOCKER,
        title="A deleted file that is still open or mapped, above --ghost-limit.",
        effect=_FAILS,
        remedy="Give a higher --ghost-limit, or let it close the file.",
        source="criu/files-reg.c (dump_ghost_remap), by the blocks that it occupies; seen",
        find=_above_ghost_limit,
        option="--ghost-limit",
        when=When.ALWAYS,
    ),
    Rule(
        name="path-covered",
        severity=Severity.BLOCKER,
        title="A file or directory that is held, and whose path was mounted over.",
        effect=_FAILS,
        remedy="Unmount what lies over it, or let it close the file.",
        source="criu/files-reg.c (check_path_remap), criu/mount.c (mnt_is_overmounted); seen",
        find=_covered,
    ),
    Rule(
        name="deleted-on-overlay",
        severity=Severity.BLOCKER,
        title="A deleted file of a lower layer of an overlay that is still open or mapped.",
        effect=_FAILS,
        remedy="Let it close the file: CRIU can neither link it nor knows that it is gone.",
        source="criu/files-reg.c (create_link_remap); seen",
        find=_not_linkable,
    ),
    Rule(
        name="program-replaced",
        severity=Severity.INFO,
        title="A program that was deleted or replaced on disk since it was started (an upgrade).",
        effect="The images keep the old program, up to --ghost-limit; /proc/PID/exe has another name after a restore.",
        remedy="Restart the workload to run the new program.",
        source="seen",
        find=_program_replaced,
    ),
    Rule(
        name="network-files",
        severity=Severity.INFO,
        title="Files on a network or FUSE file system.",
        effect="The restore fails where that file system is not mounted, or its files have changed.",
        remedy="It must be mounted where the workload is restored, and its files must be as they are now.",
        source="seen on FUSE",
        find=_elsewhere,
    ),
    Rule(
        name="files-written",
        severity=Severity.INFO,
        title="Regular files that are open for writing, but not only to append; a volume's are kept with it.",
        effect="A restore refuses files whose content or size changed after the dump.",
        remedy="Keep them in the checkpoint with --with-files, or let nobody write to them.",
        source="criu/files-reg.c (validate_file)",
        find=_pinned,
        option="--with-files",
    ),
)
