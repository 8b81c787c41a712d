"""Ask a stopped task what it sees: its own stat calls, made by it, with whatever stands between it and the kernel.

Rule: a file is asked for as its holder has it: by its descriptor, as its directory, or by its path.
Source: stat(2), newfstatat; struct stat of x86-64 and of aarch64 begin with st_dev and st_ino.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Final

from ckpt.host.inodes.matching import Match, is_path
from ckpt.host.ptrace import Tracee
from ckpt.host.virtual.calls import AT_EMPTY_PATH, stat_calls
from ckpt.model.inodes import Identity, RoleKind
from ckpt.units import DeviceNumber, InodeNumber, Pid

_AT_FDCWD: Final = -100
_AT_SYMLINK_NOFOLLOW: Final = 0x100
_STAT_BYTES: Final = 144
_PATH_BYTES_MAX: Final = 4096
_IDENTITY: Final = struct.Struct("=QQ")


def ask(tracees: Mapping[Pid, Tracee], matches: Iterable[Match]) -> dict[Match, Identity]:
    """What the task of each match sees; matches whose task cannot be asked are left out.

    Raises:
        OSError: a task cannot be made to call.
    """
    wanted: dict[Pid, list[Match]] = {}
    for match in matches:
        wanted.setdefault(match.pid, []).append(match)
    seen: dict[Match, Identity] = {}
    for pid, asked in wanted.items():
        tracee = tracees.get(pid)
        if tracee is None:
            continue
        with tracee.scratch(_STAT_BYTES + _PATH_BYTES_MAX) as memory:
            for match in asked:
                with suppress(OSError):
                    seen[match] = _ask(tracee, memory, match)
    return seen


def _ask(tracee: Tracee, memory: int, match: Match) -> Identity:
    calls = stat_calls()
    assert calls is not None  # there is no layer without them
    directory, path, flags = _way(match)
    tracee.write(memory + _STAT_BYTES, os.fsencode(path)[: _PATH_BYTES_MAX - 1] + b"\0")
    tracee.call(calls.fstatat, directory, memory + _STAT_BYTES, memory, flags)
    device, inode = _IDENTITY.unpack(tracee.read(memory, _IDENTITY.size))
    return Identity(device=DeviceNumber(device), inode=InodeNumber(inode))


def _way(match: Match) -> tuple[int, str, int]:
    """The arguments of newfstatat(2): a directory or a descriptor, a path, flags."""
    record, role = match.record, match.role
    if match.descriptor is not None:
        return match.descriptor, "", AT_EMPTY_PATH
    if role.kind is RoleKind.CWD:
        return _AT_FDCWD, ".", 0
    if role.kind is RoleKind.ROOT:
        return _AT_FDCWD, "/", 0
    if role.kind is RoleKind.EXE:
        return _AT_FDCWD, "/proc/self/exe", 0
    if record.deleted or not is_path(record):
        start, _, end = role.detail.partition(" ")[0].partition("-")
        return _AT_FDCWD, f"/proc/self/map_files/{int(start, 16):x}-{int(end, 16):x}", 0
    return _AT_FDCWD, record.path, _AT_SYMLINK_NOFOLLOW
