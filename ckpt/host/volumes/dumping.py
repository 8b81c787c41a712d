"""Copy the volumes of a job that stands still.

Rules:
- Before the freeze everything is written out, so that little is left for the time of the freeze.
- Under the freeze the file system is frozen too (FIFREEZE): its journal is empty then, and nobody, not even a
  process outside the workload, changes it while it is copied. That is noted before, and undone in any case.
- A clone where the file system of the state directory can (sparse_copy.py), else a copy of what is not a hole.
Source: ioctl_fsfreeze: linux/fs.h, FIFREEZE; ext4's freeze_fs empties the journal.
"""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

from ckpt.errors import CannotCheckpoint, NoSpace, OsRefused
from ckpt.host import journal, sparse_copy
from ckpt.host.operations import JournaledOperation
from ckpt.host.volumes import mounting
from ckpt.host.volumes.book import Book, VolumeRecord
from ckpt.model.checkpoint import StoredFile, Volume
from ckpt.units import ByteCount, Digest, JobName

FIFREEZE: Final = 0xC0045877
FITHAW: Final = 0xC0045878
_NOT_STORED_YET: Final = Digest("00" * 32)


def write_out(book: Book, job: JobName) -> None:
    """Write out what is dirty on the job's volumes.

    Raises:
        CannotCheckpoint: a volume is not mounted where it belongs.
        OsRefused: it cannot be written out.
    """
    directory = book.directory(job)
    for record in book.of(job):
        if mounting.device_of(directory, record) is None:
            raise CannotCheckpoint(
                target=f"job {job}",
                reasons=(f"its volume is not mounted at {record.mountpoint} any more",),
                remedy="Do not unmount the volume of a job that runs: its files cannot be kept so.",
            )
        subprocess.run(["sync", "-f", record.mountpoint], check=False, capture_output=True)
        with _open_image(directory, record) as image:
            os.fsync(image)


def copy_frozen(book: Book, job: JobName, operation: JournaledOperation) -> tuple[tuple[Volume, str], ...]:
    """Copy the job's volumes, whose tasks stand still, into the operation's staging.

    Each comes with the path of the copy; the root of its content is not known yet.

    Raises:
        NoSpace: the staging area is full.
        OsRefused: a volume cannot be frozen or read.
    """
    return tuple(
        _copy(book.directory(job), record, f"{operation.staging}/volume-{job}-{number}.img", operation)
        for number, record in enumerate(book.of(job))
    )


def thaw(mountpoint: str) -> str:
    """Let a file system go on that was frozen for a copy; gives what was done, in words."""
    with suppress(OSError):
        fd = os.open(mountpoint, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.ioctl(fd, FITHAW, 0)
        finally:
            os.close(fd)
        return "let the file system go on"
    return ""


def _copy(
    directory: str, record: VolumeRecord, copy: str, operation: JournaledOperation
) -> tuple[Volume, str]:
    try:
        with suppress(FileNotFoundError):
            os.unlink(copy)  # an earlier attempt's
        with _open_image(directory, record) as image, _frozen(record.mountpoint, operation):
            operation.note_phase("copying")
            size = os.fstat(image).st_size
            sparse_copy.copy_frozen(image, size, copy)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            space = os.statvfs(os.path.dirname(copy))
            raise NoSpace(
                place=os.path.dirname(copy),
                available_bytes=space.f_bavail * space.f_frsize,
                needed_bytes=os.stat(f"{directory}/{record.image}").st_blocks * 512,
                option="CKPT_STATE",
            ) from error
        raise OsRefused(
            operation="copy the volume", subject=record.mountpoint, reason=error.strerror or str(error)
        ) from error
    content = StoredFile(
        name=os.path.basename(copy), size_bytes=ByteCount(size), mode=0o600, root=_NOT_STORED_YET
    )
    return (
        Volume(
            mountpoint=record.mountpoint, filesystem=record.filesystem, device=record.device, content=content
        ),
        copy,
    )


@contextmanager
def _frozen(mountpoint: str, operation: JournaledOperation) -> Iterator[None]:
    """Keep the file system from changing for the time of the context."""
    step = journal.FilesystemFrozen(mountpoint=mountpoint)
    operation.note(step)
    fd = os.open(mountpoint, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, FIFREEZE, 0)
        try:
            yield
        finally:
            with suppress(OSError):
                fcntl.ioctl(fd, FITHAW, 0)
    finally:
        os.close(fd)
        operation.forget(step)


@contextmanager
def _open_image(directory: str, record: VolumeRecord) -> Iterator[int]:
    fd = os.open(f"{directory}/{record.image}", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)
