"""Mounts of a workload that has a mount namespace of its own: which CRIU saves, and which stay the host's.

Rules:
- A mount that the host has at the same place, of the same file system, is not saved: it is `external`, and at
  restore the host's is bound there again. What only the job has (its /proc, a tmpfs that it mounted) is left
  to CRIU, which saves it or refuses while the job still runs.
- What the job was begun with, and the host has unmounted since, is as external as before, as long as the job holds no
  file of it: others unmount what they want, and a job that does not need it must not suffer. It is not the job's own.
- CRIU knows external mounts by their place alone. Where a mount of the job's own covers one of the host's,
  it would be replaced without a word: such a job is refused.
- The root is never external: it is CRIU's option `root`, a private bind of "/" (ckpt.host.launch).
Source: proc_pid_mountinfo(5); criu/mount.c, try_resolve_ext_mount(); criu/mount-v2.c, do_bind_mount_v2().
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Final

from ckpt.errors import CannotCheckpoint, OsRefused
from ckpt.host.inspection.holdings import read_holdings
from ckpt.model.workload import ExternalMount
from ckpt.units import Pid

KERNEL_FILESYSTEMS: Final = frozenset(
    ("proc", "sysfs", "devtmpfs", "devpts", "cgroup", "cgroup2", "mqueue", "securityfs", "debugfs", "tracefs")
)
"""File systems that programs expect by their kind at their place: another one there does not serve."""

IN_MEMORY: Final = frozenset(("tmpfs", "ramfs"))
"""File systems that a reboot empties."""

Shows = tuple[str, str, str]
"""The mountpoint of a mount, its device as "major:minor", and what of its file system is mounted."""

_OCTAL: Final = re.compile(rb"\\([0-7]{3})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """One line of mountinfo: `root` is what of the file system is mounted, `device` its "major:minor"."""

    mount_id: int
    parent_id: int
    device: str
    root: str
    mountpoint: str
    filesystem: str
    source: str

    @property
    def shows(self) -> Shows:
        """What is seen where: equal for two mounts of one thing at one place."""
        return (self.mountpoint, self.device, self.root)


def mounts_of(pid: Pid | str) -> tuple[Mount, ...]:
    """All mounts of a process's namespace, in the kernel's order; "self" is this process.

    Raises:
        OSError: there is no such process.
    """
    with open(f"/proc/{pid}/mountinfo", "rb") as stream:
        return tuple(parse_mountinfo(line) for line in stream)


def parse_mountinfo(line: bytes) -> Mount:
    """One line of mountinfo as a value."""
    before, _, after = line.rstrip(b"\n").partition(b" - ")
    mount_id, parent_id, device, root, mountpoint = (_unescape(field) for field in before.split(b" ")[:5])
    filesystem, source = (_unescape(field) for field in after.split(b" ")[:2])
    return Mount(
        mount_id=int(mount_id),
        parent_id=int(parent_id),
        device=device,
        root=root,
        mountpoint=mountpoint,
        filesystem=filesystem,
        source=source,
    )


def has_own_mounts(pid: Pid) -> bool:
    """Whether the process lives in another mount namespace than this one."""
    return os.stat(f"/proc/{pid}/ns/mnt").st_ino != os.stat("/proc/self/ns/mnt").st_ino


def shown_by_host(pid: Pid) -> tuple[Shows, ...]:
    """What the process's own mount namespace and the host have both mounted now; () if it lives in ours, or has ended."""
    try:
        if not has_own_mounts(pid):
            return ()
        inside = {mount.shows for mount in mounts_of(pid)}
    except OSError:
        return ()
    return tuple(mount.shows for mount in mounts_of("self") if mount.shows in inside)


def external_mounts(
    root: Pid, pids: Iterable[Pid] = (), begun_with: Collection[Shows] = ()
) -> tuple[ExternalMount, ...]:
    """The mounts that a dump of the tree below `root` does not save; none for one in our own namespace.

    Args:
        root: The root of the tree.
        pids: The processes of the tree, whose files count.
        begun_with: What shown_by_host() gave when the tree was begun.

    Raises:
        CannotCheckpoint: a mount of the workload's own covers one of the host's.
        OSError: there is no such process.
    """
    if not has_own_mounts(root):
        return ()
    inside, host = mounts_of(root), mounts_of("self")
    present = {mount.shows for mount in host}
    gone = [mount for mount in inside if mount.shows in begun_with and mount.shows not in present]
    if gone:
        held = {hold.path for pid in pids for hold in read_holdings(pid, None).holds}
        gone = [mount for mount in gone if not _has_any(mount.mountpoint, held)]
    return choose_external(f"process {root}", inside, (*host, *gone))


def choose_external(target: str, inside: Iterable[Mount], host: Iterable[Mount]) -> tuple[ExternalMount, ...]:
    """Which of the mounts `inside` are also the host's, each place once.

    Raises:
        CannotCheckpoint: a mount of the workload's own covers one of the host's.
    """
    present = {mount.shows for mount in host}
    chosen: dict[str, ExternalMount] = {}
    own: dict[str, Mount] = {}
    for mount in inside:
        if mount.mountpoint == "/":
            continue
        if mount.shows not in present:
            own[mount.mountpoint] = mount
            continue
        # A place can be mounted over several times; the topmost, which is seen, is the last.
        chosen[mount.mountpoint] = ExternalMount(
            key=mount.mountpoint,
            mountpoint=mount.mountpoint,
            filesystem=mount.filesystem,
            source=mount.source,
            root=mount.root,
        )
    covered = sorted(own.keys() & chosen.keys())
    if covered:
        raise CannotCheckpoint(
            target=target,
            reasons=tuple(
                f"it has mounted its own {own[place].filesystem} over the host's mount at {place}"
                for place in covered
            ),
            remedy="Let the job mount it at another place.",
        )
    return tuple(chosen.values())


def dump_externals(mounts: Iterable[ExternalMount]) -> tuple[str, ...]:
    """The values of CRIU's option `external` for the dump."""
    return tuple(f"mnt[{mount.mountpoint}]:{mount.key}" for mount in mounts)


def restore_externals(mounts: Iterable[ExternalMount]) -> tuple[str, ...]:
    """The values of CRIU's option `external` for the restore."""
    return tuple(f"mnt[{mount.key}]:{mount.mountpoint}" for mount in mounts)


def mount_problems(
    mounts: Iterable[ExternalMount], held: Collection[str] = (), host: Iterable[Mount] | None = None
) -> tuple[str, ...]:
    """Why the recorded mounts cannot be had on this host: a sentence each.

    Args:
        mounts: The recorded external mounts.
        held: Paths of the files that the workload holds. A mount with none of them may be missing: others come and
            go while a job runs (networks, containers), and something stands in for it (stand_ins()).
        host: This host's mounts; None reads them.
    """
    present = {mount.mountpoint: mount for mount in (mounts_of("self") if host is None else host)}
    return tuple(problem for mount in mounts if (problem := _problem(mount, present, held)))


@contextmanager
def stand_ins(
    mounts: Iterable[ExternalMount], host: Iterable[Mount] | None = None
) -> Iterator[Callable[[], bool]]:
    """Have a directory at each place, for as long as the restore needs one to bind.

    Gives what tells whether one of them has gone since: somebody has unmounted it, or removed it.

    What a reboot has taken away, in a file system in memory as /run/user/UID is, stays; elsewhere it goes again, and
    with it the mount that nobody needs: rmdir(2) detaches it from the workload's namespace.

    Raises:
        OsRefused: one cannot be made.
    """
    mounts = tuple(mounts)
    present = {mount.mountpoint: mount for mount in (mounts_of("self") if host is None else host)}
    mounted = {mount.mountpoint for mount in mounts if mount.mountpoint in present}
    made: list[str] = []

    def has_lost() -> bool:
        return bool(mounted - {mount.mountpoint for mount in mounts_of("self")}) or not all(
            os.path.lexists(mount.mountpoint) for mount in mounts
        )

    try:
        for mount in mounts:
            missing = _missing(mount.mountpoint)
            if missing and not _is_in_memory(mount.mountpoint, present):
                made[:0] = missing
            _make(mount.mountpoint)
        yield has_lost
    finally:
        for path in made:
            with suppress(OSError):
                os.rmdir(path)


def _missing(path: str) -> list[str]:
    """The directories of the path that are not there, the innermost first."""
    found = []
    while not os.path.lexists(path):
        found.append(path)
        path = os.path.dirname(path)
    return found


def _make(place: str) -> None:
    if os.path.lexists(place):
        return
    try:
        os.makedirs(place, mode=0o755, exist_ok=True)
    except OSError as error:
        raise OsRefused(operation="make", subject=place, reason=error.strerror or str(error)) from error


def _is_in_memory(path: str, present: Mapping[str, Mount]) -> bool:
    """Whether the directory that the path lies in is in memory."""
    path = os.path.dirname(path)
    while path not in present and path != "/":
        path = os.path.dirname(path)
    return path in present and present[path].filesystem in IN_MEMORY


def _problem(mount: ExternalMount, mounts: Mapping[str, Mount], held: Collection[str]) -> str:
    place = mount.mountpoint
    present = mounts.get(place)
    wanted = f"{mount.filesystem} ({mount.source})"
    if mount.filesystem not in KERNEL_FILESYSTEMS and not _has_any(place, held):
        return ""
    if not os.path.lexists(place):
        return f"{place} does not exist, where {wanted} was mounted"
    if present is None:
        return f"nothing is mounted at {place}, where {wanted} was"
    if present.filesystem != mount.filesystem:
        return f"{place} is {present.filesystem} ({present.source}) now, and was {wanted}"
    return ""


def _has_any(place: str, paths: Iterable[str]) -> bool:
    return any(path == place or path.startswith(place + "/") for path in paths)


def _unescape(field: bytes) -> str:
    """Undo what the kernel does to blanks, newlines and backslashes."""
    return os.fsdecode(_OCTAL.sub(lambda match: bytes([int(match[1], 8)]), field))
