"""Files that a workload sees through a file system of ours (ckpt/host/inodes/fuse): recorded as the real ones.

Rule: the identity that the workload sees is `seen`; the rest of a record must be true of the file at the path, which
is what the next restore finds there.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace

from ckpt.host.inodes.fuse.server_process import FILESYSTEM
from ckpt.host.inspection.details import DetailReader, Details
from ckpt.host.inspection.holdings import Hold
from ckpt.model.inodes import Identity, InodeRecord, RoleKind
from ckpt.units import DeviceNumber, InodeNumber, Nanoseconds, Pid


def as_on_host(records: Iterable[InodeRecord]) -> tuple[InodeRecord, ...]:
    """The records, with the real files' identities where the workload sees another one by a file system of ours."""
    return tuple(
        _real(record) if record.filesystem.type == FILESYSTEM and not record.deleted else record
        for record in records
    )


def _real(record: InodeRecord) -> InodeRecord:
    """The record, with what does not come through the file system taken from the file at its path.

    What does (size, times, digest) stays: where the path leads to another file by now, a restore finds that it is not
    as it was.
    """
    seen = Identity(device=record.device, inode=record.inode)
    try:
        status = os.stat(record.path, follow_symlinks=False)
        details = _details(record.path, status)
    except OSError:
        # Gone from the host: its directory tells on which mount it is missing.
        directory = os.path.dirname(record.path)
        return replace(record, seen=seen, filesystem=_details(directory, os.stat(directory)).filesystem)
    return replace(
        record,
        device=DeviceNumber(status.st_dev),
        inode=InodeNumber(status.st_ino),
        seen=seen,
        generation=details.generation,
        btime_ns=None if details.btime_ns is None else Nanoseconds(details.btime_ns),
        handle=details.handle,
        filesystem=details.filesystem,
    )


def _details(path: str, status: os.stat_result) -> Details:
    hold = Hold(Pid(os.getpid()), RoleKind.FD, "", path, status, path)
    return DetailReader().read(hold, os.stat("/proc/self/ns/mnt").st_ino, is_program=False)
