"""Are the files that a checkpoint recorded as they were? Asked before anything is restored.

Rules:
- What the kernel makes up (/proc, /sys, devices, pipes, sockets) and what travels in the images (files without
  a name, and those on mounts that only the workload had) is not compared.
- A file that nobody but an O_WRONLY|O_APPEND descriptor holds is a log: it may have grown, and CRIU lets it.
- A file whose identity down to its ctime is the recorded one is not read again.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import Final

from ckpt.host.inspection.details import generation_of, kind_of
from ckpt.host.inspection.digests import DigestCache, Wanted
from ckpt.model.inodes import Difference, DigestState, FileChange, FileKind, InodeRecord, RoleKind
from ckpt.units import ByteCount

_KERNEL_MADE: Final = frozenset(
    (
        "proc", "sysfs", "cgroup", "cgroup2", "devpts", "devtmpfs", "mqueue", "debugfs", "tracefs",
        "securityfs", "configfs", "bpf", "pstore", "efivarfs", "autofs", "binfmt_misc", "nsfs",
    )
)  # fmt: skip
_COMPARED: Final = (FileKind.REGULAR, FileKind.DIRECTORY, FileKind.FIFO)
_DIGEST_LIMIT: Final = ByteCount(1 << 62)
"""What was digested at the dump is digested again, whatever its size now."""


def differences(inodes: Iterable[InodeRecord], cache: DigestCache) -> tuple[FileChange, ...]:
    """What of the recorded files is not as it was, on this host now."""
    return tuple(change for record in inodes if is_compared(record) for change in _compare(record, cache))


def is_compared(record: InodeRecord) -> bool:
    """Whether a restore depends on this file being there."""
    return (
        not record.deleted and record.kind in _COMPARED
        and record.filesystem.mountpoint != "" and record.filesystem.type not in _KERNEL_MADE
        and any(role.kind not in (RoleKind.WATCH, RoleKind.LOCK) for role in record.roles)
    )  # fmt: skip


def _compare(record: InodeRecord, cache: DigestCache) -> Iterator[FileChange]:
    def change(difference: Difference, recorded: object, found: object) -> FileChange:
        return FileChange(path=record.path, difference=difference, recorded=str(recorded), found=str(found))

    try:
        status = os.stat(record.path, follow_symlinks=False)
    except OSError as error:
        yield change(Difference.MISSING, "there", error.strerror or "missing")
        return
    if kind_of(status.st_mode) is not record.kind:
        yield change(Difference.KIND, record.kind, kind_of(status.st_mode))
        return
    if status.st_mode != record.mode:
        yield change(Difference.MODE, f"{record.mode & 0o7777:04o}", f"{status.st_mode & 0o7777:04o}")
    if record.kind is FileKind.REGULAR and not _is_log(record):
        if status.st_size != record.size_bytes:
            yield change(Difference.SIZE, record.size_bytes, status.st_size)
        elif record.digest_state is DigestState.STABLE and not _same_down_to_ctime(record, status):
            digest = _digest_now(record, status, cache)
            if digest != record.digest:
                yield change(Difference.CONTENT, (record.digest or "")[:12], (digest or "unreadable")[:12])
    if status.st_dev != record.device:
        yield change(Difference.DEVICE, _device(record.device), _device(status.st_dev))
    if status.st_ino != record.inode:
        yield change(Difference.INODE, record.inode, status.st_ino)
    elif record.generation is not None:
        found = generation_of(record.path)
        if found is not None and found != record.generation:
            yield change(Difference.GENERATION, record.generation, found)


def _is_log(record: InodeRecord) -> bool:
    holds = [role for role in record.roles if role.kind in (RoleKind.FD, RoleKind.MAP, RoleKind.EXE)]
    return bool(holds) and all(
        role.kind is RoleKind.FD and role.detail.endswith(" O_WRONLY|O_APPEND") for role in holds
    )


def _same_down_to_ctime(record: InodeRecord, status: os.stat_result) -> bool:
    return (record.device, record.inode, record.mtime_ns, record.ctime_ns) == (
        status.st_dev,
        status.st_ino,
        status.st_mtime_ns,
        status.st_ctime_ns,
    )


def _digest_now(record: InodeRecord, status: os.stat_result, cache: DigestCache) -> str | None:
    wanted = Wanted(
        path=record.path,
        device=status.st_dev,
        inode=status.st_ino,
        generation=generation_of(record.path) or 0,
        size=status.st_size,
        mtime_ns=status.st_mtime_ns,
        ctime_ns=status.st_ctime_ns,
    )
    return cache.take([wanted], _DIGEST_LIMIT)[0][0]


def _device(number: int) -> str:
    return f"{os.major(number)}:{os.minor(number)}"
