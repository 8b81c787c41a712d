"""The target of shipped files: each is put together from what is at its path here and from the blocks that come.

Rules:
- The file that is here is never written: the restore does that, and takes it back where it fails. It is copied when the
  first block comes that it lacks, and not at all if none comes.
- What comes is hostile until it was checked: numbers, paths and sizes have bounds, and nothing is allocated for what was
  not sent.
- A content counts only if the digest over all its blocks is that of the source. It is made from the digests of what was
  read and written here, so that the whole need not be read again while the workload waits.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Final

from ckpt.errors import HostMismatch, NoSpace, ObjectCorrupt, OsRefused
from ckpt.host import sparse_copy
from ckpt.host.inodes.places import Refused, is_written_elsewhere, opened_place
from ckpt.host.saved_files_record import version_of
from ckpt.host.shipping.blocks import (
    FILE_BYTES_MAX,
    OFFERED_BLOCKS_MAX,
    BlockTable,
    FileDigests,
    block_digests,
    blocks_of,
    table_of,
)
from ckpt.host.shipping.checking import check_blocks, check_content, nonsense, number_of
from ckpt.host.shipping.writing import write_blocks
from ckpt.model.checkpoint import SavedFile
from ckpt.units import SECOND

_SETTLED_NS: Final = 2 * SECOND
_ABSENT: Final = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO)


@dataclass(slots=True)
class _Content:
    """What is here of one content: of the file at `path` in the version `base`, or in a file of our own."""

    path: str
    size: int = 0
    table: BlockTable = field(default_factory=BlockTable)
    base: tuple[int, ...] | None = None


class ReceivedFiles:
    """The files of one migration, on the target, in a directory of their own."""

    def __init__(self, directory: str) -> None:
        """Begin, or go on with what an earlier call left in the directory, which is made if it is missing.

        Raises:
            OsRefused: it cannot be made.
        """
        self._directory = directory
        self._contents: dict[int, _Content] = {}
        self._unsettled: set[int] = set()
        self._open: tuple[int, int] | None = None
        self._received_bytes = 0
        with self._told("make", directory):
            os.makedirs(directory, mode=0o700, exist_ok=True)

    @property
    def received_bytes(self) -> int:
        """How many bytes of blocks came."""
        return self._received_bytes

    def offer(self, number: int, path: str) -> FileDigests | None:
        """What is here for this content: what came of it earlier, else the file at the path; None for nothing.

        Raises:
            PeerFailed: the number or the path is nonsense.
            OsRefused, NoSpace: it cannot be read or copied.
        """
        check_content(number, path)
        with self._told("read", path):
            content = self._reopened(number, path) or self._based(number, path)
        if content is None:
            return None
        self._contents[number] = content
        count = min(blocks_of(content.size), OFFERED_BLOCKS_MAX)
        return FileDigests(content.size, content.table.get(0, count))

    def blocks(
        self, number: int, path: str, size: int, first_block: int, content: bytes | memoryview
    ) -> None:
        """Write blocks that follow each other, and let the file be `size` bytes long.

        Raises:
            PeerFailed: what came is nonsense.
            HostMismatch: the file that is here changed since it was offered.
            OsRefused, NoSpace: it cannot be written.
        """
        check_content(number, path)
        check_blocks(path, size, first_block, len(content))
        known = self._contents.get(number)
        if known is None:
            known = self._contents[number] = _Content(path=path)
        elif known.path != path:
            raise nonsense(f"content {number} was that of {known.path}, and is that of {path}")
        with self._told("write", path):
            fd = self._opened(number, known)
            if size != known.size:
                os.ftruncate(fd, size)
                known.table.cut(blocks_of(size))
                known.size = size
            digests = block_digests(memoryview(content))
            write_blocks(fd, first_block, memoryview(content), digests)
            known.table.put(first_block, digests)
        self._received_bytes += len(content)

    def contents(self, files: Sequence[SavedFile]) -> tuple[tuple[SavedFile, str], ...]:
        """Each file with the path of its content, which is the source's; settle() makes them durable.

        Raises:
            PeerFailed: a file was never sent.
            ObjectCorrupt: a content is not the source's.
            HostMismatch: a file that is here changed since it was offered.
            OsRefused, NoSpace: something cannot be read or copied.
        """
        paths: dict[int, set[str]] = {}
        for file in files:
            paths.setdefault(number_of(file), set()).add(file.path)
        verified: dict[int, str] = {}
        for file in files:
            number = number_of(file)
            if number not in verified:
                with self._told("read", file.path):
                    verified[number] = self._verified(number, file, paths[number])
        return tuple((file, verified[number_of(file)]) for file in files)

    def settle(self) -> None:
        """Make all that came durable; quick where little came since the last call.

        Raises:
            OsRefused, NoSpace: it cannot be written.
        """
        self._close()
        for number in sorted(self._unsettled):
            content = self._contents[number]
            place = self._file(number) if content.base is None else content.path
            with self._told("write", content.path):
                _sync(place)
        with self._told("write", self._directory):
            _sync(self._directory)
        self._unsettled.clear()

    def close(self) -> None:
        """Let go of it; what came stays."""
        self._close()

    def remove(self) -> None:
        """Remove all of it; safe to repeat."""
        self._close()
        shutil.rmtree(self._directory, ignore_errors=True)
        self._contents.clear()
        self._unsettled.clear()

    def _file(self, number: int) -> str:
        return f"{self._directory}/{number}"

    def _reopened(self, number: int, path: str) -> _Content | None:
        """What an earlier call left of a content; None for nothing."""
        try:
            fd = os.open(self._file(number), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            self._unsettled.add(number)
            return _Content(path=path, size=os.fstat(fd).st_size, table=table_of(fd))
        finally:
            os.close(fd)

    def _based(self, number: int, path: str) -> _Content | None:
        """What the file at this path is; None if there is none."""
        try:
            with opened_place(path) as place, place.opened(os.O_RDONLY) as fd:
                status = os.fstat(fd)
                if not stat.S_ISREG(status.st_mode) or status.st_size > FILE_BYTES_MAX:
                    return None
                now_ns = time.time_ns()
                is_settled = now_ns - max(status.st_mtime_ns, status.st_ctime_ns) > _SETTLED_NS
                if is_settled and not is_written_elsewhere(fd):
                    table = table_of(fd)
                    if version_of(os.fstat(fd)) == version_of(status):
                        self._unsettled.add(number)
                        return _Content(path=path, size=status.st_size, table=table, base=version_of(status))
                # It may change at any time: what is offered is a copy of it.
                sparse_copy.copy_frozen(fd, status.st_size, self._file(number))
        except Refused:
            return None
        except OSError as error:
            if error.errno in _ABSENT:
                return None
            raise
        return self._reopened(number, path)

    def _opened(self, number: int, content: _Content) -> int:
        """Our own file of the content, open for writing; made if there is none."""
        if self._open is not None and self._open[0] == number:
            return self._open[1]
        self._close()
        if content.base is not None:
            self._copy_base(number, content)
        fd = os.open(self._file(number), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, mode=0o600)
        self._open = (number, fd)
        self._unsettled.add(number)
        return fd

    def _copy_base(self, number: int, content: _Content) -> None:
        with opened_place(content.path) as place, place.opened(os.O_RDONLY) as fd:
            sparse_copy.copy_frozen(fd, content.size, self._file(number))
            if version_of(os.fstat(fd)) != content.base:
                with open(self._file(number), "rb") as copy:
                    is_same = _holds(copy.fileno(), content)
                if not is_same:
                    os.unlink(self._file(number))
                    raise _changed(content.path)
        content.base = None

    def _verified(self, number: int, file: SavedFile, paths: set[str]) -> str:
        content = self._contents.get(number) or self._found_again(number, file, paths)
        if content is None:
            raise nonsense(f"{file.path} was never sent")
        self._contents[number] = content
        stored = file.content
        if content.size != stored.size_bytes or content.table.root(content.size) != stored.root:
            raise ObjectCorrupt(
                kind="shipped file",
                name=file.path,
                reason=f"what was put together here, of {content.size} bytes, is not what the source has, of "
                f"{stored.size_bytes}",
                remedy="Migrate again: the workload runs on where it was.",
            )
        if content.base is None:
            return self._file(number)
        # Another content may be written to the path before this one is read.
        if content.path not in paths:
            self._opened(number, content)
            return self._file(number)
        with opened_place(content.path) as place, place.opened(os.O_RDONLY) as fd:
            if version_of(os.fstat(fd)) != content.base and not _holds(fd, content):
                raise _changed(content.path)
        return content.path

    def _found_again(self, number: int, file: SavedFile, paths: set[str]) -> _Content | None:
        """A content that another process received: in our directory, or at one of its paths."""
        if content := self._reopened(number, file.path):
            return content
        for path in sorted(paths):
            content = self._based(number, path)
            if content is not None and content.table.root(content.size) == file.content.root:
                return content
            self._unsettled.discard(number)
            with suppress(FileNotFoundError):
                os.unlink(self._file(number))
        return None

    def _close(self) -> None:
        if self._open is not None:
            os.close(self._open[1])
            self._open = None

    @contextmanager
    def _told(self, operation: str, subject: str) -> Iterator[None]:
        """Foreign errors become ours."""
        try:
            yield
        except Refused as refused:
            raise OsRefused(operation=operation, subject=subject, reason=str(refused)) from refused
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise OsRefused(
                    operation=operation, subject=subject, reason=error.strerror or str(error)
                ) from error
            space = os.statvfs(self._directory)
            needed = sum(content.size for content in self._contents.values())
            raise NoSpace(
                place=self._directory,
                available_bytes=space.f_bavail * space.f_frsize,
                needed_bytes=needed,
                option="CKPT_STATE on a file system that has it",
            ) from error


def _holds(fd: int, content: _Content) -> bool:
    """Whether an open file holds this content: its times may have changed, and nothing else."""
    size = os.fstat(fd).st_size
    return size == content.size and table_of(fd).root(size) == content.table.root(size)


def _sync(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _changed(path: str) -> HostMismatch:
    return HostMismatch(
        ref="the workload",
        reasons=(f"{path} was changed by another process here while it was received",),
        remedy="Let nobody else write to it, and migrate again.",
    )
