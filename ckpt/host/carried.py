"""Files that CRIU leaves out of its images and the workload needs: copied at the dump, put back at the restore.

Rules:
- carry() is called in CRIU's post-dump hook: the tasks stand still, and the links that CRIU made for files
  without a name of their own (link_remap.N) are still there; CRIU deletes them right after
  (criu/files-reg.c, delete_link_remaps).
- Shared memory by name is memory: it is written back into the file that is there, or a new one.
- A file that was there before keeps its inode; what it held is kept until the restore has succeeded.
"""

from __future__ import annotations

import errno
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Final

from ckpt.errors import NoSpace, OsRefused
from ckpt.host.criu.imagefile import read_entries
from ckpt.host.inspection import HostView, syscalls
from ckpt.host.inspection.details import kind_of
from ckpt.model.checkpoint import CarriedFile, StoredFile
from ckpt.model.inodes import FileKind
from ckpt.units import ByteCount, Nanoseconds

SHARED_MEMORY: Final = "/dev/shm/"  # noqa: S108 - not a place for temporary files of ours
_LINK: Final = "link_remap."


def carry(images: str, staging: str, view: HostView) -> tuple[tuple[CarriedFile, str], ...]:
    """Copy what must be carried along into `staging`; each file comes with the path of its copy.

    Raises:
        NoSpace: the staging area is full.
        OsRefused: a file cannot be read.
    """
    tree = os.path.basename(images)
    paths = [(path, True) for path in _links(images)]
    paths += [(path, False) for path in _shared_memory(view)]
    return tuple(
        _copy(path, f"{staging}/carried-{tree}-{number}", temporary=temporary)
        for number, (path, temporary) in enumerate(paths)
    )


class PutBack:
    """What put_back() did: undo() takes it back; tidy() removes what only the restore itself needed."""

    def __init__(self) -> None:
        self._made: list[str] = []
        self._temporary: list[str] = []
        self._replaced: list[tuple[str, str]] = []

    def undo(self) -> None:
        """Leave everything as it was found."""
        for path, kept in reversed(self._replaced):
            _fill(path, kept)
        for path in reversed(self._made + self._temporary):
            with suppress(FileNotFoundError):
                os.unlink(path)

    def tidy(self) -> None:
        """Remove the links that CRIU has opened by now."""
        for path in self._temporary:
            with suppress(FileNotFoundError):
                os.unlink(path)

    def put(self, file: CarriedFile, copy: str) -> None:
        """Put one file where it is needed."""
        if file.temporary:
            if not os.path.lexists(file.path):
                self._temporary.append(file.path)
                if not _link_again(file):
                    _create(file, copy)
        elif os.path.lexists(file.path):
            kept = f"{copy}.before"
            shutil.copyfile(file.path, kept)
            self._replaced.append((file.path, kept))
            _fill(file.path, copy)
        else:
            self._made.append(file.path)
            _create(file, copy)


def put_back(files: tuple[tuple[CarriedFile, str], ...]) -> PutBack:
    """Put carried files, whose contents lie at the given paths, where the restore needs them.

    Raises:
        OsRefused: one could not be put back; those before it have been taken back.
    """
    done = PutBack()
    for file, copy in files:
        try:
            done.put(file, copy)
        except OSError as error:
            done.undo()
            raise OsRefused(
                operation="put back", subject=file.path, reason=error.strerror or str(error)
            ) from error
    return done


def _links(images: str) -> list[str]:
    """The links that CRIU made for files whose own names are gone."""
    entries = read_entries(Path(images, "files.img"), "FILES", "file_entry")
    names = {"/" + entry.reg.name.lstrip("/") for entry in entries if entry.HasField("reg")}
    return sorted(name for name in names if os.path.basename(name).startswith(_LINK) and os.path.exists(name))


def _shared_memory(view: HostView) -> list[str]:
    return sorted(
        held.first.path
        for held in view.files.values()
        if held.first.path.startswith(SHARED_MEMORY)
        and not held.first.target.endswith(" (deleted)")
        and kind_of(held.first.status.st_mode) is FileKind.REGULAR
    )


def _copy(path: str, copy: str, *, temporary: bool) -> tuple[CarriedFile, str]:
    try:
        # O_NOFOLLOW: the workload owns these directories, and must not lead root elsewhere.
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        with os.fdopen(fd, "rb") as source:
            status = os.fstat(fd)
            _write(source.fileno(), status.st_size, copy)
        handle = _handle(path) if temporary else None
    except OSError as error:
        raise _refused(path, copy, error) from error
    content = StoredFile(
        name=os.path.basename(copy),
        size_bytes=ByteCount(status.st_size),
        mode=status.st_mode & 0o7777,
        chunks=(),
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


def _write(source: int, size: int, copy: str) -> None:
    target = os.open(copy, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        sent = 0
        while sent < size:
            count = os.sendfile(target, source, sent, size - sent)
            if count == 0:
                break
            sent += count
    finally:
        os.close(target)


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


def _create(file: CarriedFile, copy: str) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(file.path, flags, 0o600)
    with os.fdopen(fd, "wb") as target, open(copy, "rb") as source:
        shutil.copyfileobj(source, target)
        os.fchown(fd, file.uid, file.gid)
        os.fchmod(fd, file.content.mode & 0o7777)
    os.utime(file.path, ns=(file.mtime_ns, file.mtime_ns), follow_symlinks=False)


def _fill(path: str, copy: str) -> None:
    """Replace the content and keep the inode."""
    fd = os.open(path, os.O_WRONLY | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(fd, "wb") as target, open(copy, "rb") as source:
        shutil.copyfileobj(source, target)


def _refused(path: str, copy: str, error: OSError) -> NoSpace | OsRefused:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        space = os.statvfs(os.path.dirname(copy))
        return NoSpace(
            place=os.path.dirname(copy),
            available_bytes=space.f_bavail * space.f_frsize,
            needed_bytes=os.path.getsize(path),
        )
    return OsRefused(operation="copy", subject=path, reason=error.strerror or str(error))
