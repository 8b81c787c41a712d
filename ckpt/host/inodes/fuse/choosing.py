"""Which files are shown under their inode numbers by a file system of ours, and which workload must not be.

Rules:
- Only where the virtual layer cannot be had: that one keeps the device, too.
- sqlite in WAL mode tells its databases apart by device and inode: where it would find the one and not the other,
  it deletes a log that is in use, and committed rows are lost. Such a restore is refused.
- No two files are shown under one number.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from typing import Final

from ckpt.errors import HostMismatch, OsRefused
from ckpt.host.inodes.fuse.server_process import FileToShow
from ckpt.host.inodes.moved import MovedFile, identity_of
from ckpt.host.inodes.places import is_plain
from ckpt.host.virtual import covering
from ckpt.model.inodes import FileKind, InodeMethod, InodeRecord, RoleKind

FILES_MAX: Final = 2048
"""Each takes a descriptor in the server and a mount in the workload's namespace."""

_NOTE: Final = "fuse.json"
_SHM: Final = "-shm"
_NUMBER_MAX: Final = (1 << 64) - 1


def is_wanted(allowed: Collection[InodeMethod]) -> bool:
    """Whether this is the way to go for what the rungs before could not keep."""
    return InodeMethod.FUSE in allowed and (InodeMethod.VIRTUAL not in allowed or bool(covering.why_not()))


def choose(moved: Sequence[MovedFile], inodes: Iterable[InodeRecord]) -> tuple[FileToShow, ...]:
    """Those of the moved files that can be shown under their numbers.

    Args:
        moved: Files that no other rung could keep.
        inodes: All files of the checkpoint.

    Raises:
        HostMismatch: the workload would lose data: it has one of them as a database in WAL mode.
    """
    _refuse_wal({file.path for file in moved}, inodes)
    chosen: dict[tuple[int, int], FileToShow] = {}
    taken: set[int] = set()
    for file in moved:
        number, identity = file.wanted.inode, identity_of(file.found)
        if identity in chosen:
            # Another name of a file that is shown already.
            if chosen[identity]["number"] == number and is_plain(file.path):
                chosen[identity]["paths"].append(file.path)
        elif _can_be_shown(file) and number not in taken and len(chosen) < FILES_MAX:
            taken.add(number)
            chosen[identity] = FileToShow(
                device=file.found.st_dev, inode=file.found.st_ino, number=number, paths=[file.path]
            )
    return tuple(chosen.values())


def paths_of(files: Iterable[FileToShow]) -> Iterator[str]:
    """All paths under which the files are shown."""
    for file in files:
        yield from file["paths"]


def note(staging: str, files: Sequence[FileToShow]) -> None:
    """Leave word for the restore that follows; `staging` is its operation's directory.

    Raises:
        OsRefused: it cannot be written.
    """
    try:
        with open(f"{staging}/{_NOTE}", "w", encoding="ascii") as stream:
            json.dump(files, stream)
    except OSError as error:
        raise OsRefused(
            operation="write", subject=f"{staging}/{_NOTE}", reason=error.strerror or str(error)
        ) from error


def noted(staging: str) -> tuple[FileToShow, ...]:
    """What was chosen for the restore with this staging directory."""
    try:
        with open(f"{staging}/{_NOTE}", encoding="ascii") as stream:
            return tuple(json.load(stream))
    except FileNotFoundError:
        return ()


def _can_be_shown(file: MovedFile) -> bool:
    return (
        file.record.kind is FileKind.REGULAR
        and is_plain(file.path)
        and 0 < file.wanted.inode <= _NUMBER_MAX
        # With the number that it has, it would only get a wrong device for another.
        and file.wanted.inode != file.found.st_ino
        # A watch could not be dumped again: CRIU does not find a file through the mount of a file.
        and all(role.kind is not RoleKind.WATCH for role in file.record.roles)
    )


def _refuse_wal(moved: AbstractSet[str], inodes: Iterable[InodeRecord]) -> None:
    """Refuse databases whose shared memory is mapped, if any of their files has another identity."""
    reasons = []
    for record in inodes:
        if not record.path.endswith(_SHM) or all(role.kind is not RoleKind.MAP for role in record.roles):
            continue
        database = record.path.removesuffix(_SHM)
        if moved & {database, f"{database}-wal", record.path}:
            reasons.append(
                f"the workload has mapped {record.path}: sqlite would take {database} for another database, "
                "and lose rows, because only the inode numbers could be kept, and not the device"
            )
    if reasons:
        raise HostMismatch(
            ref="The checkpoint",
            reasons=tuple(reasons),
            remedy="Put the very files back, or restore on a file system with the recorded device number.",
        )
