"""What volumes mean for a workload's files: those on them come and go with the volume, as a whole.

Rule: such a file is neither compared nor put back by itself. Its content is in the volume's image, and so are
its inode, its links and its times.
"""

from __future__ import annotations

from ckpt.errors import FilesChanged
from ckpt.model.checkpoint import Volume
from ckpt.model.inodes import FileChange, InodePolicy, InodeRecord


def outside_volumes(inodes: tuple[InodeRecord, ...], volumes: tuple[Volume, ...]) -> tuple[InodeRecord, ...]:
    """The files that are on none of the volumes."""
    places = tuple(volume.mountpoint for volume in volumes)
    return tuple(inode for inode in inodes if not _is_within(inode.path, places))


def refuse_other_devices(ref: str, policy: InodePolicy, changes: tuple[FileChange, ...]) -> None:
    """Apply the inode policy to volumes that have got another device number.

    Raises:
        FilesChanged: every identity must be the recorded one, and some are not.
    """
    if changes and policy is InodePolicy.VERIFY:
        raise FilesChanged(
            ref=ref,
            count=len(changes),
            reasons=tuple(map(str, changes)),
            remedy="Detach what has the loop device, or restore with --inodes keep.",
        )


def _is_within(path: str, places: tuple[str, ...]) -> bool:
    return any(path == place or path.startswith(place + "/") for place in places)
