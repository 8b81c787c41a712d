"""Which workloads live in the mount namespace of a FileView: these are dumped as if they had none of their own.

Rules:
- CRIU is started in that namespace, takes it for its own, and saves no mounts. It records paths; what is shown at
  them is decided anew at the next restore.
- A namespace is taken for one of ours only if it belongs to the host's user namespace and has the host's root: then
  nobody but root can have made it.
Source: criu/namespaces.c: what lives in CRIU's own namespace is not saved; ioctl_nsfs(2).
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable
from contextlib import suppress
from typing import Final

from ckpt.host.criu.launch import Launcher
from ckpt.host.inodes.fuse.server_process import FILESYSTEM
from ckpt.host.inodes.fuse.view import entering
from ckpt.host.mounts import Mount, has_own_mounts, mounts_of
from ckpt.units import Pid

_NS_GET_USERNS: Final = 0xB701


def is_in_view(pid: Pid) -> bool:
    """Whether the process lives in a mount namespace that was made for a restore; false if it has ended."""
    with suppress(OSError):
        return (
            has_own_mounts(pid)
            and _has_our_file_system(pid)
            and _root(mounts_of(pid)) == _root(mounts_of("self"))
            and _is_of_our_user_namespace(pid)
        )
    return False


def launcher_for(pid: Pid, launcher: Launcher) -> Launcher:
    """The launcher for a CRIU that is to dump this process."""
    return entering(f"/proc/{pid}/ns/mnt", launcher) if is_in_view(pid) else launcher


def _has_our_file_system(pid: Pid) -> bool:
    # Asked of every job under the freeze: so the lines are not parsed.
    with open(f"/proc/{pid}/mountinfo", "rb") as stream:
        return b" - %s " % FILESYSTEM.encode() in stream.read()


def _root(mounts: Iterable[Mount]) -> tuple[str, str] | None:
    found = [mount for mount in mounts if mount.mountpoint == "/"]
    return (found[-1].device, found[-1].root) if found else None


def _is_of_our_user_namespace(pid: Pid) -> bool:
    namespace = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    try:
        owner = fcntl.ioctl(namespace, _NS_GET_USERNS)
    finally:
        os.close(namespace)
    try:
        return os.fstat(owner).st_ino == os.stat("/proc/self/ns/user").st_ino
    finally:
        os.close(owner)
