"""Are the files that a checkpoint recorded as they were? Asked before anything is restored.

Rules:
- What the kernel makes up (/proc, /sys, devices, pipes, sockets) and what travels in the images (files without
  a name, and those on mounts that only the workload had) is not compared.
- A file that nobody but an O_WRONLY|O_APPEND descriptor holds is a log: it may have grown, and CRIU lets it; one
  that is gone can be made anew.
- A file whose identity down to its ctime is the recorded one is not read again.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from ckpt.host.inspection.details import generation_of, kind_of
from ckpt.host.inspection.digests import DigestCache, Wanted
from ckpt.model.inodes import Difference, DigestState, FileChange, FileKind, InodeRecord, RoleKind
from ckpt.units import ByteCount, Digest

_KERNEL_MADE: Final = frozenset(
    (
        "proc", "sysfs", "cgroup", "cgroup2", "devpts", "devtmpfs", "mqueue", "debugfs", "tracefs",
        "securityfs", "configfs", "bpf", "pstore", "efivarfs", "autofs", "binfmt_misc", "nsfs",
    )
)  # fmt: skip
_HELD: Final = (RoleKind.FD, RoleKind.MAP, RoleKind.CWD, RoleKind.ROOT, RoleKind.EXE)
_COMPARED: Final = (FileKind.REGULAR, FileKind.DIRECTORY, FileKind.FIFO)
_DIGEST_LIMIT: Final = ByteCount(1 << 62)
"""What was digested at the dump is digested again, whatever its size now."""


def differences(inodes: Iterable[InodeRecord], cache: DigestCache) -> tuple[FileChange, ...]:
    """What of the recorded files is not as it was, on this host now."""
    found = [(record, _status(record)) for record in inodes if is_compared(record)]
    doubtful = [
        (record, status)
        for record, status in found
        if isinstance(status, os.stat_result) and _must_be_read(record, status)
    ]
    # All at once: the cache reads several files at a time.
    results = cache.take((_wanted(record, status) for record, status in doubtful), _DIGEST_LIMIT)
    digests = {_name(record): digest for (record, _), (digest, _) in zip(doubtful, results, strict=True)}
    return tuple(change for record, status in found for change in _compare(record, status, digests))


def is_compared(record: InodeRecord) -> bool:
    """Whether a restore depends on this file being there."""
    return (
        not record.deleted and record.kind in _COMPARED
        and record.filesystem.mountpoint != "" and record.filesystem.type not in _KERNEL_MADE
        and any(role.kind in _HELD for role in record.roles)
    )  # fmt: skip


def _status(record: InodeRecord) -> os.stat_result | OSError:
    try:
        return os.stat(record.path, follow_symlinks=False)
    except OSError as error:
        return error


def _name(record: InodeRecord) -> tuple[str, int, int]:
    """Two records may have one path: of the file that was there, and of the one that took its place."""
    return (record.path, record.device, record.inode)


def _compare(
    record: InodeRecord,
    status: os.stat_result | OSError,
    digests: Mapping[tuple[str, int, int], Digest | None],
) -> Iterator[FileChange]:
    def change(difference: Difference, recorded: object, found: object) -> FileChange:
        return FileChange(path=record.path, difference=difference, recorded=str(recorded), found=str(found))

    if isinstance(status, OSError):
        is_gone_log = is_log(record) and isinstance(status, FileNotFoundError)
        difference = Difference.NO_LOG if is_gone_log else Difference.MISSING
        yield change(difference, "there", status.strerror or "missing")
        return
    if kind_of(status.st_mode) is not record.kind:
        yield change(Difference.KIND, record.kind, kind_of(status.st_mode))
        return
    if status.st_mode != record.mode:
        yield change(Difference.MODE, f"{record.mode & 0o7777:04o}", f"{status.st_mode & 0o7777:04o}")
    if _size_matters(record) and status.st_size != record.size_bytes:
        yield change(Difference.SIZE, record.size_bytes, status.st_size)
    digest = digests.get(_name(record), record.digest)
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


def _size_matters(record: InodeRecord) -> bool:
    return record.kind is FileKind.REGULAR and not is_log(record)


def _must_be_read(record: InodeRecord, status: os.stat_result) -> bool:
    """Whether nothing but its content can tell that it is as it was."""
    return (
        _size_matters(record)
        and record.digest_state is DigestState.STABLE
        and kind_of(status.st_mode) is record.kind
        and status.st_size == record.size_bytes
        and not _same_down_to_ctime(record, status)
    )


def is_log(record: InodeRecord) -> bool:
    """Whether it is a file that the workload only appends to."""
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


def _wanted(record: InodeRecord, status: os.stat_result) -> Wanted:
    return Wanted(
        path=record.path,
        device=status.st_dev,
        inode=status.st_ino,
        generation=generation_of(record.path) or 0,
        size=status.st_size,
        mtime_ns=status.st_mtime_ns,
        ctime_ns=status.st_ctime_ns,
    )


def _device(number: int) -> str:
    return f"{os.major(number)}:{os.minor(number)}"
