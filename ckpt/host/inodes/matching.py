"""Which file of this host a restored task holds in the place of each recorded one.

Rules:
- A file is found through what holds it: the same descriptor, mapping or directory of the restored task. Only what
  is watched, locked or bound to without being held is looked up by its path, as the task would.
- Nothing is believed that a record says but where to look; what is there is read from the kernel.
Source: proc_pid_fd(5), proc_pid_map_files(5).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from ckpt.host.inspection.details import kind_of
from ckpt.model.inodes import Identity, InodeRecord, Role, RoleKind
from ckpt.units import DeviceNumber, InodeNumber, Pid

_OWN_TERMINAL: Final = "/dev/tty"
"""It is whatever terminal a session has, and that is another one by now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """A recorded file, and the one that the restored task `pid` (as this host sees it) holds by the same `role`."""

    record: InodeRecord
    pid: Pid
    role: Role
    found: Identity

    @property
    def is_moved(self) -> bool:
        """Whether the task would see another identity than it saw."""
        return self.found != self.record.identity

    @property
    def descriptor(self) -> int | None:
        """The number of the task's descriptor, where it is one that holds the file."""
        return int(self.role.detail.partition(" ")[0]) if self.role.kind is RoleKind.FD else None


def matches(records: Iterable[InodeRecord], pids: Mapping[Pid, Pid]) -> tuple[Match, ...]:
    """What the restored tasks hold for each record; what cannot be found again is left out.

    Args:
        records: The files of the checkpoint.
        pids: From the pid of the dump to the one that the task has on this host now.
    """
    found = (_match(record, pids) for record in records if record.path != _OWN_TERMINAL)
    return tuple(match for match in found if match is not None)


def is_path(record: InodeRecord) -> bool:
    """Whether the file can be reached by a path, and not only by what holds it."""
    return record.path.startswith("/") and not record.path.startswith("/memfd:")


def _match(record: InodeRecord, pids: Mapping[Pid, Pid]) -> Match | None:
    for role in record.roles:
        pid = pids.get(role.pid)
        if pid is None:
            continue
        with suppress(OSError, ValueError):
            status = _status(record, role, pid)
            if status is not None and kind_of(status.st_mode) is record.kind:
                identity = Identity(device=DeviceNumber(status.st_dev), inode=InodeNumber(status.st_ino))
                return Match(record=record, pid=pid, role=role, found=identity)
    return None


def _status(record: InodeRecord, role: Role, pid: Pid) -> os.stat_result | None:
    place, first = f"/proc/{pid}", role.detail.partition(" ")[0]
    match role.kind:
        case RoleKind.FD:
            return os.stat(f"{place}/fd/{int(first)}")
        case RoleKind.MAP:
            start, _, end = first.partition("-")
            return os.stat(f"{place}/map_files/{int(start, 16):x}-{int(end, 16):x}")
        case RoleKind.CWD | RoleKind.ROOT | RoleKind.EXE:
            return os.stat(f"{place}/{role.kind}")
        case RoleKind.WATCH | RoleKind.LOCK | RoleKind.BOUND | RoleKind.ABOVE:
            if record.deleted or not is_path(record):
                return None
            return os.stat(f"{place}/root{record.path}", follow_symlinks=False)
