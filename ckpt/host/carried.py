"""Files that CRIU leaves out of its images and the workload needs: copied at the dump, put back at the restore.

Rules:
- carry() is called in CRIU's post-dump hook: the tasks stand still, and the links that CRIU made for files
  without a name of their own (link_remap.N) are still there; CRIU deletes them right after
  (criu/files-reg.c, delete_link_remaps).
- Shared memory by name is memory: it is written back into the file that is there, or a new one.
- A file that was there before keeps its inode; what it held is kept until the restore has succeeded.
- A checkpoint may come from anywhere: nothing but such links and shared memory is ever written, no symbolic
  link is followed, and nothing is given to a file that belongs to somebody else by now.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from ckpt.errors import NoSpace, ObjectCorrupt, OsRefused
from ckpt.host import sparse_copy
from ckpt.host.criu.imagefile import read_entries
from ckpt.host.inspection import syscalls
from ckpt.host.inspection.inspector import HostView
from ckpt.host.inspection.records import HeldFile
from ckpt.model.checkpoint import CarriedFile, StoredFile
from ckpt.model.inodes import RoleKind
from ckpt.units import ByteCount, Digest, Nanoseconds, Pid

_SHARED_MEMORY: Final = "/dev/shm"  # noqa: S108 - not a place for temporary files of ours
_LINK: Final = re.compile(r"link_remap\.[0-9]+", re.ASCII)
_NOT_STORED_YET: Final = Digest("00" * 32)
_HELD: Final = frozenset((RoleKind.FD, RoleKind.MAP))


def carry(images: str, staging: str, view: HostView) -> tuple[tuple[CarriedFile, str], ...]:
    """Copy what must be carried along into `staging`; each file comes with the path of its copy.

    Raises:
        NoSpace: the staging area is full.
        OsRefused: a file cannot be read.
    """
    tree = os.path.basename(images)
    paths = [(path, True) for path in _links(images)]
    paths += [(path, False) for path in _shared_memory(view, Pid(int(tree)))]
    return tuple(
        _copy(path, f"{staging}/carried-{tree}-{number}", temporary=temporary)
        for number, (path, temporary) in enumerate(paths)
    )


def is_shared_memory(held: HeldFile) -> bool:
    """Whether it is shared memory with a name: that is carried along wherever a dump goes."""
    first = held.first
    return (
        os.path.dirname(first.path) == _SHARED_MEMORY
        and not first.deleted
        and stat.S_ISREG(first.status.st_mode)
        and any(role.kind in _HELD for role in held.roles)
    )


class PutBack:
    """What put_back() did: undo() takes it back; tidy() removes what only the restore itself needed."""

    def __init__(self) -> None:
        self._made: list[str] = []
        self._temporary: list[str] = []
        self._replaced: list[tuple[str, str]] = []

    def undo(self) -> None:
        """Leave everything as it was found.

        Raises:
            OsRefused: something could not be taken back; all else was.
        """
        failed: OsRefused | None = None
        for path, kept in reversed(self._replaced):
            try:
                _refill(path, kept)
            except OSError as error:
                failed = _not_done("take back", path, error)
        for path in reversed(self._made + self._temporary):
            with suppress(FileNotFoundError):
                os.unlink(path)
        if failed:
            raise failed

    def tidy(self) -> None:
        """Remove the links that CRIU has opened by now."""
        for path in self._temporary:
            with suppress(FileNotFoundError):
                os.unlink(path)

    def put(self, file: CarriedFile, copy: str) -> None:
        """Put one file where it is needed.

        Raises:
            OSError: that is not possible.
        """
        if file.temporary:
            if os.path.lexists(file.path):
                if file.handle is None or _handle(file.path) != file.handle:
                    raise FileExistsError(errno.EEXIST, "another file of this name is in the way")
            elif _link_again(file):
                self._temporary.append(file.path)
            else:
                self._temporary += _create(file, copy)
        elif os.path.lexists(file.path):
            kept = f"{copy}.before"
            _keep(file, kept)
            self._replaced.append((file.path, kept))
            _refill(file.path, copy)
        else:
            self._made += _create(file, copy)


def put_back(files: tuple[tuple[CarriedFile, str], ...]) -> PutBack:
    """Put carried files, whose contents lie at the given paths, where the restore needs them.

    Raises:
        ObjectCorrupt: one is neither shared memory nor a link of CRIU's; nothing was touched.
        OsRefused: one could not be put back; those before it have been taken back.
    """
    for file, _ in files:
        _check_place(file)
    done = PutBack()
    for file, copy in files:
        try:
            done.put(file, copy)
        except OSError as error:
            done.undo()
            raise _not_done("put back", file.path, error) from error
    return done


def _check_place(file: CarriedFile) -> None:
    directory, name = os.path.split(file.path)
    if file.temporary:
        allowed = bool(_LINK.fullmatch(name)) and directory.startswith("/")
    else:
        allowed = bool(name) and directory == _SHARED_MEMORY
    if not allowed or os.path.normpath(file.path) != file.path or file.path.startswith("//"):
        raise ObjectCorrupt(
            kind="carried file",
            name=file.path,
            reason=f"neither shared memory in {_SHARED_MEMORY} nor a link that CRIU makes",
            remedy="Do not trust the checkpoint: ckpt writes no such file.",
        )


def _links(images: str) -> list[str]:
    """The links that CRIU made for files whose own names are gone."""
    entries = read_entries(Path(images, "files.img"), "FILES", "file_entry")
    names = {"/" + entry.reg.name.lstrip("/") for entry in entries if entry.HasField("reg")}
    return sorted(name for name in names if _LINK.fullmatch(os.path.basename(name)) and os.path.lexists(name))


def _shared_memory(view: HostView, root: Pid) -> Iterator[str]:
    """The shared memory that has a name, each file with the first tree that holds it."""
    tree_of = {process.pid: tree.root for tree in view.trees for process in tree.processes}
    order = [tree.root for tree in view.trees]
    for held in view.files.values():
        if not is_shared_memory(held):
            continue
        path = held.first.path
        holders = {tree_of[role.pid] for role in held.roles if role.kind in _HELD and role.pid in tree_of}
        if not holders or min(holders, key=order.index) != root:
            continue
        with suppress(FileNotFoundError):
            now = os.stat(path, follow_symlinks=False)
            # Another file of this name: it is the memory of a mount of the workload's own, which CRIU saves.
            if (now.st_dev, now.st_ino) == held.first.key:
                yield path


def _copy(path: str, copy: str, *, temporary: bool) -> tuple[CarriedFile, str]:
    try:
        # O_NOFOLLOW: the workload owns these directories, and must not lead root elsewhere.
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        with os.fdopen(fd, "rb") as source:
            status = os.fstat(fd)
            sparse_copy.copy_frozen(source.fileno(), status.st_size, copy)
        handle = _handle(path) if temporary else None
    except OSError as error:
        raise _refused(path, copy, error) from error
    content = StoredFile(
        name=os.path.basename(copy),
        size_bytes=ByteCount(status.st_size),
        mode=status.st_mode & 0o7777,
        root=_NOT_STORED_YET,
    )
    return (
        CarriedFile(
            path=path,
            temporary=temporary,
            handle=handle,
            uid=status.st_uid,
            gid=status.st_gid,
            mtime_ns=Nanoseconds(status.st_mtime_ns),
            content=content,
        ),
        copy,
    )


def _handle(path: str) -> str | None:
    with suppress(OSError):
        kind, content = syscalls.file_handle(path)
        return f"{kind}:{content.hex()}"
    return None


def _link_again(file: CarriedFile) -> bool:
    """Link the very file, if it still is on this file system; its other links then are of one file again."""
    if file.handle is None:
        return False
    kind, _, content = file.handle.partition(":")
    try:
        directory = os.open(os.path.dirname(file.path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fd = syscalls.open_by_handle(directory, int(kind), bytes.fromhex(content), os.O_RDONLY)
        finally:
            os.close(directory)
        try:
            if os.fstat(fd).st_size != file.content.size_bytes:
                return False
            syscalls.link_open_file(fd, file.path)
        finally:
            os.close(fd)
    except (OSError, ValueError):
        return False
    return True


def _create(file: CarriedFile, copy: str) -> list[str]:
    """Make the file anew; gives the path that was made.

    Raises:
        OSError: it could not be made, and is not there.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(file.path, flags, 0o600)
    try:
        sparse_copy.fill(fd, copy)
        os.fchown(fd, file.uid, file.gid)
        # Without set-uid and set-gid: see rule F23 of images/FORMAT.md.
        os.fchmod(fd, file.content.mode & 0o777)
        os.utime(fd, ns=(file.mtime_ns, file.mtime_ns))
    except OSError:
        os.unlink(file.path)
        raise
    finally:
        os.close(fd)
    return [file.path]


def _keep(file: CarriedFile, kept: str) -> None:
    """Copy what is there now, if it is the workload's to write.

    Raises:
        OSError: it is not, or there is no space.
    """
    fd = os.open(file.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EEXIST, "something that is no file is in the way")
        if (status.st_uid, status.st_gid) != (file.uid, file.gid):
            owner = f"uid {status.st_uid}, gid {status.st_gid}"
            raise OSError(
                errno.EPERM, f"it belongs to {owner} now, and belonged to uid {file.uid}, gid {file.gid}"
            )
        sparse_copy.copy_frozen(fd, status.st_size, kept)
        os.utime(kept, ns=(status.st_atime_ns, status.st_mtime_ns))
    finally:
        os.close(fd)


def _refill(path: str, copy: str) -> None:
    """Replace the content and keep the inode."""
    fd = os.open(path, os.O_WRONLY | os.O_TRUNC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        sparse_copy.fill(fd, copy)
    finally:
        os.close(fd)


def _not_done(operation: str, path: str, error: OSError) -> OsRefused:
    return OsRefused(operation=operation, subject=path, reason=error.strerror or str(error))


def _refused(path: str, copy: str, error: OSError) -> NoSpace | OsRefused:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        space = os.statvfs(os.path.dirname(copy))
        return NoSpace(
            place=os.path.dirname(copy),
            available_bytes=space.f_bavail * space.f_frsize,
            needed_bytes=os.path.getsize(path),
        )
    return _not_done("copy", path, error)
