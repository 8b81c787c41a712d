"""Mounts of a workload that has a mount namespace of its own: which CRIU saves, and which stay the host's.

Rules:
- A mount that the host has at the same place, of the same file system, is not saved: it is `external`, and at
  restore the host's is bound there again. What only the job has (its /proc, a tmpfs that it mounted) is left
  to CRIU, which saves it or refuses while the job still runs.
- CRIU knows external mounts by their place alone. Where a mount of the job's own covers one of the host's,
  it would be replaced without a word: such a job is refused.
- The root is never external: it is CRIU's option `root`, a private bind of "/" (ckpt.host.launch).
Source: proc_pid_mountinfo(5); criu/mount.c, try_resolve_ext_mount(); criu/mount-v2.c, do_bind_mount_v2().
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Final

from ckpt.errors import CannotCheckpoint
from ckpt.model.workload import ExternalMount
from ckpt.units import Pid

KERNEL_FILESYSTEMS: Final = frozenset(
    ("proc", "sysfs", "devtmpfs", "devpts", "cgroup", "cgroup2", "mqueue", "securityfs", "debugfs", "tracefs")
)
"""File systems that programs expect by their kind at their place: another one there does not serve."""

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
    def shows(self) -> tuple[str, str, str]:
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


def external_mounts(pid: Pid) -> tuple[ExternalMount, ...]:
    """The mounts that a dump of the tree below `pid` does not save; none for one in our own namespace.

    Raises:
        CannotCheckpoint: a mount of the workload's own covers one of the host's.
        OSError: there is no such process.
    """
    if not has_own_mounts(pid):
        return ()
    return choose_external(f"process {pid}", mounts_of(pid), mounts_of("self"))


def choose_external(target: str, inside: Iterable[Mount], host: Iterable[Mount]) -> tuple[ExternalMount, ...]:
    """Which of the mounts `inside` are also the host's, each place once.

    Raises:
        CannotCheckpoint: a mount of the workload's own covers one of the host's.
    """
    shown_by_host = {mount.shows for mount in host}
    chosen: dict[str, ExternalMount] = {}
    own: dict[str, Mount] = {}
    for mount in inside:
        if mount.mountpoint == "/":
            continue
        if mount.shows not in shown_by_host:
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
        held: Paths of the files that the workload holds. A mount with none of them may be missing, if its
            directory is there.
        host: This host's mounts; None reads them.
    """
    present = {mount.mountpoint: mount for mount in (mounts_of("self") if host is None else host)}
    return tuple(
        problem for mount in mounts if (problem := _problem(mount, present.get(mount.mountpoint), held))
    )


def _problem(mount: ExternalMount, present: Mount | None, held: Collection[str]) -> str:
    place = mount.mountpoint
    wanted = f"{mount.filesystem} ({mount.source})"
    if not os.path.lexists(place):
        return f"{place} does not exist, where {wanted} was mounted"
    needed = mount.filesystem in KERNEL_FILESYSTEMS or any(
        path == place or path.startswith(place + "/") for path in held
    )
    if not needed:
        return ""
    if present is None:
        return f"nothing is mounted at {place}, where {wanted} was"
    if present.filesystem != mount.filesystem:
        return f"{place} is {present.filesystem} ({present.source}) now, and was {wanted}"
    return ""


def _unescape(field: bytes) -> str:
    """Undo what the kernel does to blanks, newlines and backslashes."""
    return os.fsdecode(_OCTAL.sub(lambda match: bytes([int(match[1], 8)]), field))
