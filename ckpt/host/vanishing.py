"""Which files of a workload do not outlive the boot: those on file systems in memory, which a reboot empties.

Rules:
- Named shared memory (/dev/shm) travels in every checkpoint and is not among them, nor is what has no name any more.
- Only what the host sees under the same name counts: a mount of the workload's own is in its images.
Source: tmpfs(5), proc_pid_fd(5), proc_pid_map_files(5).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Final

from ckpt.host.mounts import IN_MEMORY, mounts_of
from ckpt.units import Pid

_SHARED_MEMORY: Final = "/dev/shm"  # noqa: S108 - not a place for temporary files of ours


def vanishing_files(pids: Iterable[Pid]) -> tuple[str, ...]:
    """The paths of the regular files that these processes hold open or mapped, and that a reboot takes away; sorted.

    What ends meanwhile, or closes a file, is passed over.
    """
    devices = {
        mount.device
        for mount in mounts_of("self")
        if mount.filesystem in IN_MEMORY and mount.mountpoint != _SHARED_MEMORY
    }
    return tuple(sorted({path for pid in pids for path in _held_by(pid) if _is_on(path, devices)}))


def _held_by(pid: Pid) -> Iterator[str]:
    """The regular files that the process holds, as far as their names lead this process to the same files."""
    for kind in ("fd", "map_files"):
        with suppress(OSError), os.scandir(f"/proc/{pid}/{kind}") as entries:
            for entry in entries:
                with suppress(OSError):
                    status, path = os.stat(entry.path), os.readlink(entry.path)
                    if stat.S_ISREG(status.st_mode) and os.path.samestat(status, os.stat(path)):
                        yield path


def _is_on(path: str, devices: set[str]) -> bool:
    with suppress(OSError):
        device = os.stat(path).st_dev
        return f"{os.major(device)}:{os.minor(device)}" in devices
    return False
