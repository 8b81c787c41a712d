"""Which files that a workload holds open must travel with it, where the user asks for that.

Rules:
- What it writes to travels, wherever it is: by a descriptor, or by a shared mapping.
- What it only reads travels if the target lacks it, or has another content there; but nothing of what is installed
  with the system: that must be there, in the same version.
- Programs and libraries never travel. Nor does what no host has (a mount of the workload's own), what the kernel makes
  up, what lies on the network, where the target finds it, and what is deleted: CRIU's images bring that.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterable
from contextlib import suppress
from typing import Final

from ckpt.host.inspection.holdings import Hold, read_holdings
from ckpt.host.mounts import KERNEL_FILESYSTEMS
from ckpt.host.saved_files_found import filesystem_of
from ckpt.model.inodes import FileKind, InodeRecord, Role, RoleKind
from ckpt.units import Pid

_SYSTEM: Final = ("/usr/", "/lib/", "/lib32/", "/lib64/", "/bin/", "/sbin/", "/etc/", "/boot/")
_ELSEWHERE: Final = frozenset(
    ("9p", "afs", "ceph", "cifs", "fuse.glusterfs", "fuse.sshfs", "gfs2", "glusterfs", "lustre", "nfs", "nfs4",
     "ocfs2", "smb3", "virtiofs")
)  # fmt: skip
_UNREAL: Final = KERNEL_FILESYSTEMS | {
    "hugetlbfs",
    "nsfs",
    "pstore",
    "bpf",
    "configfs",
    "efivarfs",
    "fusectl",
}
_SHARED_MEMORY: Final = "/dev/shm/"  # noqa: S108  no file is made: it is carried with the memory


def open_files(records: Iterable[InodeRecord], lacking: Collection[str]) -> tuple[str, ...]:
    """The paths of the files that must travel, each once, in order.

    Args:
        records: The files of the workload.
        lacking: Paths at which the target has no file, or one with another size or content.
    """
    return tuple(
        sorted(
            {
                record.path
                for record in records
                if _can_travel(record)
                and (
                    any(_writes(role) for role in record.roles)
                    or (record.path in lacking and _is_read(record) and not record.path.startswith(_SYSTEM))
                )
            }
        )
    )


def written_now(pids: Iterable[Pid]) -> tuple[str, ...]:
    """The paths of the files that these processes can write to at this moment, each once, in order.

    Quick enough for the time of a freeze. A process that has ended holds none.
    """
    holds = (hold for pid in pids for hold in read_holdings(pid, None).holds)
    found = {hold.path for hold in holds if _is_written(hold) and not hold.path.startswith(_SHARED_MEMORY)}
    return tuple(sorted(path for path in found if filesystem_of(path) not in _UNREAL | _ELSEWHERE))


def _is_written(hold: Hold) -> bool:
    """Whether it is a hold on a regular file of this host through which it can be written."""
    role = Role(pid=hold.pid, kind=hold.kind, detail=hold.detail)
    if not (stat.S_ISREG(hold.status.st_mode) and hold.is_file and _writes(role)) or hold.deleted:
        return False
    with suppress(OSError):
        return os.path.samestat(os.lstat(hold.path), hold.status)
    return False


def _can_travel(record: InodeRecord) -> bool:
    return (
        record.kind is FileKind.REGULAR
        and not record.deleted
        and record.path.startswith("/")
        and not record.path.startswith(_SHARED_MEMORY)
        and record.filesystem.mountpoint != ""
        and record.filesystem.type not in _UNREAL | _ELSEWHERE
        and record.build_id is None
        and not any(_executes(role) for role in record.roles)
    )


def _writes(role: Role) -> bool:
    match role.kind:
        case RoleKind.FD:
            return "O_WRONLY" in role.detail or "O_RDWR" in role.detail
        case RoleKind.MAP:
            permissions = role.detail.rpartition(" ")[2]
            return "w" in permissions and permissions.endswith("s")
        case (
            RoleKind.CWD
            | RoleKind.ROOT
            | RoleKind.EXE
            | RoleKind.WATCH
            | RoleKind.LOCK
            | RoleKind.BOUND
            | RoleKind.ABOVE
        ):
            return False


def _executes(role: Role) -> bool:
    return role.kind is RoleKind.EXE or (role.kind is RoleKind.MAP and "x" in role.detail.rpartition(" ")[2])


def _is_read(record: InodeRecord) -> bool:
    return any(role.kind in (RoleKind.FD, RoleKind.MAP) for role in record.roles)
