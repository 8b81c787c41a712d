"""From holds on files to inode records: one record for each file, with everybody who holds it.

Source: proc_pid_fdinfo(5) for the lines of inotify watches.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from ckpt.host.inspection import syscalls
from ckpt.host.inspection.details import Details, kind_of
from ckpt.host.inspection.filelocks import NO_PROCESS, FileLock
from ckpt.host.inspection.holdings import Hold, Key
from ckpt.host.mounts import mounts_of
from ckpt.model.inodes import DigestState, Identity, InodeRecord, Role, RoleKind
from ckpt.units import ByteCount, DeviceNumber, Digest, InodeNumber, Nanoseconds, Pid

_WATCH: Final = re.compile(r"ino:([0-9a-f]+) sdev:([0-9a-f]+).*fhandle-type:([0-9a-f]+) f_handle:([0-9a-f]+)")
_MINOR_BITS: Final = 20
"""The kernel prints its own dev_t in fdinfo: 12 bits of major, 20 of minor."""

_OBJECTS: Final = ("pipe:[", "socket:[", "/memfd:")
_NAMELESS: Final = "/memfd:/dev/zero"
"""What CRIU makes of shared memory without a file (criu/memfd.c): nobody can ask for its numbers."""
_PROGRAMS: Final = frozenset((RoleKind.MAP, RoleKind.EXE))


@dataclass(slots=True)
class HeldFile:
    """A file and all holds on it; `first` is the one that it is reached through."""

    first: Hold
    roles: list[Role] = field(default_factory=list)
    is_program: bool = False
    """Whether it is executed or mapped: then it may have a build-id."""

    is_written_by_map: bool = False
    """Whether an area of memory writes to it: then its times do not tell when it changed."""


def held_files(holds: Iterable[Hold]) -> dict[Key, HeldFile]:
    """The files among the holds, each once; pipes, sockets and anonymous inodes are none."""
    found: dict[Key, HeldFile] = {}
    for hold in holds:
        if hold.is_file and not hold.target.startswith(("/memfd:", "/anon_hugepage")):
            held = found.setdefault(hold.key, HeldFile(first=hold))
            held.roles.append(Role(pid=hold.pid, kind=hold.kind, detail=hold.detail))
            if hold.kind in _PROGRAMS:
                held.is_program = True
                held.is_written_by_map = held.is_written_by_map or hold.is_written_by_map
    return found


def held_objects(holds: Iterable[Hold]) -> dict[Key, HeldFile]:
    """What has an identity but no place in a file system: pipes, sockets, memfds; each once.

    Descriptors of the kernel's anonymous inodes (events, timers, epoll) all show the same number.
    """
    found: dict[Key, HeldFile] = {}
    for hold in holds:
        if hold.target.startswith(_OBJECTS) and not hold.target.startswith(_NAMELESS):
            held = found.setdefault(hold.key, HeldFile(first=hold))
            held.roles.append(Role(pid=hold.pid, kind=hold.kind, detail=hold.detail))
    return found


def add_bound_names(files: dict[Key, HeldFile], pid: Pid, holds: Iterable[Hold]) -> None:
    """Note the names that a process's unix sockets are bound to: CRIU binds them again, to new inodes."""
    sockets = {hold.target for hold in holds if hold.target.startswith("socket:[")}
    if not sockets:
        return
    with suppress(OSError):
        with open(f"/proc/{pid}/net/unix", encoding="utf-8", errors="surrogateescape") as stream:
            bound = [fields[6:] for line in stream if len(fields := line.rstrip("\n").split(None, 7)) == 8]
        directory = os.readlink(f"/proc/{pid}/cwd")
        for number, name in bound:
            if f"socket:[{number}]" in sockets and not name.startswith("@"):
                # A relative name was bound in the directory of then; it mostly is the one of now.
                _add_bound_name(files, pid, os.path.normpath(os.path.join(directory, name)))


def _add_bound_name(files: dict[Key, HeldFile], pid: Pid, name: str) -> None:
    link = f"/proc/{pid}/root{name}"
    with suppress(OSError):
        status = os.stat(link, follow_symlinks=False)
        if stat.S_ISSOCK(status.st_mode):
            hold = Hold(pid, RoleKind.BOUND, "", name, status, link)
            held = files.setdefault(hold.key, HeldFile(first=hold))
            held.roles.append(Role(pid=pid, kind=RoleKind.BOUND, detail=""))


def add_directories(files: dict[Key, HeldFile]) -> None:
    """Note the directories above the files that are held: programs compare their devices with those of the files."""
    looked_at: set[tuple[Pid, str]] = set()
    for held in list(files.values()):
        hold = held.first
        path = os.path.dirname(hold.path) if hold.path.startswith("/") and not hold.deleted else ""
        while path and (hold.pid, path) not in looked_at:
            looked_at.add((hold.pid, path))
            link = f"/proc/{hold.pid}/root{path}"
            with suppress(OSError):
                above = Hold(hold.pid, RoleKind.ABOVE, "", path, os.stat(link, follow_symlinks=False), link)
                found = files.setdefault(above.key, HeldFile(first=above))
                found.roles.append(Role(pid=hold.pid, kind=RoleKind.ABOVE, detail=""))
            path = os.path.dirname(path) if path != "/" else ""


def add_locks(files: dict[Key, HeldFile], pids: Iterable[Pid], locks: Iterable[FileLock]) -> None:
    """Note the file locks of the workload on the files that it holds."""
    workload = {*pids, NO_PROCESS}
    for lock in locks:
        held = files.get((lock.device, lock.inode))
        if held is not None and lock.holder in workload:
            owner = held.first.pid if lock.holder == NO_PROCESS else lock.holder
            held.roles.append(Role(pid=owner, kind=RoleKind.LOCK, detail=lock.line))


def add_watches(files: dict[Key, HeldFile], pid: Pid, watches: Iterable[str]) -> None:
    """Note what a process watches by inotify; files that nobody holds are found by their handle."""
    for line in watches:
        match = _WATCH.search(line)
        if match is None:
            continue
        inode, device = int(match[1], 16), int(match[2], 16)
        key = (os.makedev(device >> _MINOR_BITS, device & (1 << _MINOR_BITS) - 1), inode)
        held = files.get(key)
        if held is None:
            hold = _by_handle(pid, key, int(match[3], 16), bytes.fromhex(match[4]))
            if hold is None:
                continue
            held = files[key] = HeldFile(first=hold)
        held.roles.append(Role(pid=pid, kind=RoleKind.WATCH, detail=line.partition(" mask:")[0]))


def record(
    held: HeldFile,
    details: Details,
    digest: Digest | None,
    state: DigestState,
    *,
    shown: Callable[[Identity], Identity],
) -> InodeRecord:
    """The manifest's record of a file; `shown` tells under which identity the workload sees a real one."""
    hold, status = held.first, held.first.status
    real = Identity(device=DeviceNumber(status.st_dev), inode=InodeNumber(status.st_ino))
    seen = shown(real)
    return InodeRecord(
        path=hold.path,
        kind=kind_of(status.st_mode),
        device=real.device,
        inode=real.inode,
        seen=None if seen == real else seen,
        generation=details.generation,
        size_bytes=ByteCount(status.st_size),
        mode=status.st_mode,
        uid=status.st_uid,
        gid=status.st_gid,
        mtime_ns=Nanoseconds(status.st_mtime_ns),
        ctime_ns=Nanoseconds(status.st_ctime_ns),
        btime_ns=None if details.btime_ns is None else Nanoseconds(details.btime_ns),
        links=status.st_nlink,
        deleted=hold.deleted,
        filesystem=details.filesystem,
        build_id=details.build_id,
        handle=details.handle,
        digest=digest,
        digest_state=state,
        roles=tuple(dict.fromkeys(held.roles)),
    )


def _by_handle(pid: Pid, key: Key, kind: int, handle: bytes) -> Hold | None:
    with suppress(OSError):
        for mount in mounts_of(pid):
            if os.stat(f"/proc/{pid}/root{mount.mountpoint}").st_dev != key[0]:
                continue
            place = os.open(f"/proc/{pid}/root{mount.mountpoint}", os.O_RDONLY | os.O_CLOEXEC)
            try:
                fd = syscalls.open_by_handle(place, kind, handle, os.O_PATH)
            finally:
                os.close(place)
            try:
                link = f"/proc/self/fd/{fd}"
                target, status = os.readlink(link), os.stat(link)
            finally:
                os.close(fd)
            return Hold(pid, RoleKind.WATCH, "", target, status, target)
    return None
