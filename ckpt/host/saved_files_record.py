"""What a checkpoint says of a saved file, and how a file is opened that may be one.

Rule: the name of a content is made from the file's path, so that the next dump finds it again in the parent.
"""

from __future__ import annotations

import hashlib
import os
from typing import Final

from ckpt.host.saved_files_found import FoundFile
from ckpt.model.checkpoint import ExtendedAttribute, SavedFile, StoredFile
from ckpt.units import ByteCount, Digest, Nanoseconds

# O_NONBLOCK: where the workload, which stands still, holds a lease, opening fails and does not wait for it.
READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOATIME | os.O_CLOEXEC

_NOT_STORED_YET: Final = Digest("00" * 32)


def saved_file(
    file: FoundFile,
    name: str,
    attributes: tuple[ExtendedAttribute, ...],
    *,
    size: int,
    root: Digest = _NOT_STORED_YET,
) -> SavedFile:
    """What a checkpoint says of a file with these attributes, whose content has this name, size and root."""
    status = file.status
    return SavedFile(
        path=file.path,
        mode=status.st_mode,
        uid=status.st_uid,
        gid=status.st_gid,
        mtime_ns=Nanoseconds(status.st_mtime_ns),
        content=StoredFile(name=name, size_bytes=ByteCount(size), mode=status.st_mode & 0o7777, root=root),
        attributes=attributes,
    )


def content_name(path: str) -> str:
    """The name, in a checkpoint, of what the file at this path holds."""
    return f"saved-{hashlib.sha256(os.fsencode(path)).hexdigest()[:32]}"


def version_of(status: os.stat_result) -> tuple[int, ...]:
    """What changes if the file does, or another one takes its place."""
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
