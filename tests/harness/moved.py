"""Files whose identity changed, and how a directory is compared with what it was."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from pathlib import Path

from ckpt.host.inodes.moved import MovedFile
from ckpt.host.inspection import syscalls
from ckpt.host.inspection.details import generation_of, kind_of
from ckpt.model.inodes import DigestState, FileSystem, InodeRecord, Role, RoleKind
from ckpt.units import ByteCount, DeviceNumber, Digest, InodeNumber, Nanoseconds, Pid


def record_of(path: Path, *, filesystem: str = "ext4", hold: str = "3 O_RDWR") -> InodeRecord:
    """What a dump would record of a file that process 1 holds by a descriptor."""
    status = os.lstat(path)
    is_file = stat.S_ISREG(status.st_mode)
    return InodeRecord(
        path=str(path),
        kind=kind_of(status.st_mode),
        device=DeviceNumber(status.st_dev),
        inode=InodeNumber(status.st_ino),
        seen=None,
        generation=generation_of(str(path)),
        size_bytes=ByteCount(status.st_size),
        mode=status.st_mode,
        uid=status.st_uid,
        gid=status.st_gid,
        mtime_ns=Nanoseconds(status.st_mtime_ns),
        ctime_ns=Nanoseconds(status.st_ctime_ns),
        btime_ns=_birth(path),
        links=status.st_nlink,
        deleted=False,
        filesystem=FileSystem(type=filesystem, uuid="", fsid=0, source="", mountpoint="/x", mount_id=1),
        build_id=None,
        handle=None,
        digest=Digest(hashlib.sha256(path.read_bytes()).hexdigest()) if is_file else None,
        digest_state=DigestState.STABLE if is_file else DigestState.NOT_REGULAR,
        roles=(Role(pid=Pid(1), kind=RoleKind.FD, detail=hold),),
    )


def moved(record: InodeRecord) -> MovedFile:
    """The file as it is at the record's path now."""
    return MovedFile(path=record.path, record=record, found=os.lstat(record.path))


def replace_by_copy(path: Path, *, content: bytes | None = None) -> None:
    """What rsync and backups do: a copy, or a file with another content, takes the name."""
    copy = path.with_name(path.name + ".copy")
    shutil.copy2(path, copy)
    if content is not None:
        copy.write_bytes(content)
    copy.rename(path)


def listing(folder: Path) -> dict[str, tuple[object, ...]]:
    """Everything below a folder: what each name leads to, and what it holds."""
    return {str(path.relative_to(folder)): _state(path) for path in sorted(folder.rglob("*"))}


def _state(path: Path) -> tuple[object, ...]:
    status = os.lstat(path)
    content: object = path.read_bytes() if stat.S_ISREG(status.st_mode) else None
    attributes = {name: os.getxattr(path, name) for name in os.listxattr(path, follow_symlinks=False)}
    # A directory's time changes with every name in it, also with one that is taken back.
    mtime_ns = 0 if stat.S_ISDIR(status.st_mode) else status.st_mtime_ns
    return (status.st_ino, status.st_mode, status.st_uid, mtime_ns, content, attributes)


def _birth(path: Path) -> Nanoseconds | None:
    born = syscalls.statx(str(path)).btime_ns
    return None if born is None else Nanoseconds(born)
