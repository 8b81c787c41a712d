"""Objects as the files of one directory.

Rules: F40 to F49 of images/FORMAT.md. An object is written under tmp/, made durable, and only then linked to its
name, which fails if the name is taken: so no name ever shows half an object, not even after a power cut.
Source: link(2), fsync(2): "calling fsync() does not necessarily ensure that the entry in the directory
containing the file has also reached disk. For that an explicit fsync() on the directory is also needed".
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import stat
import threading
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Final

from ckpt.errors import ObjectCorrupt
from ckpt.store import lock
from ckpt.store.backend import Content, ObjectStat, check_name
from ckpt.store.refused import converted
from ckpt.units import ByteCount

TEMPORARY: Final = "tmp"
LOCK: Final = "lock"

_LEASE: Final = "lease-"

_DIRECTORY_MODE: Final = 0o700
_FILE_MODE: Final = 0o600
_BLOCK_BYTES: Final = 512  # the unit of st_blocks, whatever the file system's own is: stat(2)


class LocalLease:
    """A file of names that is locked while its owner lives. Fits backend.Lease."""

    def __init__(self, fd: int, root: str) -> None:
        self._fd = fd
        self._root = root

    def pin(self, names: Iterable[str]) -> None:
        """Add names; nothing needs to be durable, since a power cut ends all that is at work."""
        rest = memoryview("".join(f"{name}\n" for name in names).encode())
        with converted(self._root):
            while rest:
                rest = rest[os.write(self._fd, rest) :]


class LocalBackend:
    """A directory that exists; see backend.Backend for what the methods promise."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._unflushed: set[str] = set()
        self._marking = threading.Lock()
        self._flushing = threading.Lock()

    @property
    def place(self) -> str:
        """The directory, as the user named it."""
        return self._root

    def create(self, name: str, content: Content) -> ByteCount | None:
        """Create an object, and give the bytes of the blocks that it takes; None if the name is taken."""
        check_name(name)
        with self._written(content) as (temporary, space):
            return space if self._link(temporary, name) else None

    def replace(self, name: str, content: bytes) -> ByteCount:
        """Create an object, or put a whole one in the place of one that is cut off."""
        check_name(name)
        with self._written(content) as (temporary, space):
            path = self._path(name)
            os.makedirs(os.path.dirname(path), _DIRECTORY_MODE, exist_ok=True)
            os.rename(temporary, path)
            self._mark(name)
            return space

    def flush(self) -> None:
        """Make durable the names that were created, deleted or seen."""
        # Whoever comes second must not return before the first has finished with the folders it took.
        with self._flushing:
            with self._marking:
                folders, self._unflushed = self._unflushed, set()
            try:
                with converted(self._root):
                    for folder in sorted(folders):
                        _fsync_directory(self._path(folder))
            except BaseException:
                with self._marking:
                    self._unflushed |= folders
                raise

    def read(self, name: str, limit: int) -> bytes | None:
        """The whole content of at most `limit` bytes."""
        return self._read(name, 0, None, limit)

    def read_part(self, name: str, offset: int, count: int) -> bytes | None:
        """At most `count` bytes from `offset` on."""
        return self._read(name, offset, count, None)

    def stat(self, name: str) -> ObjectStat | None:
        """The size, and the bytes of the blocks that it takes."""
        check_name(name)
        with converted(self._root):
            try:
                found = os.lstat(self._path(name))
            except (FileNotFoundError, NotADirectoryError):
                return None
        self._mark(name)
        return ObjectStat(size_bytes=ByteCount(found.st_size), space_bytes=_space(found))

    def list(self, folder: str) -> Iterator[str]:
        """The names of everything below the folder, sorted folder by folder."""
        check_name(folder)
        with converted(self._root):
            try:
                with os.scandir(self._path(folder)) as found:
                    entries = sorted((entry.name, entry.is_dir(follow_symlinks=False)) for entry in found)
            except FileNotFoundError:
                return
        for name, is_directory in entries:
            if is_directory:
                yield from self.list(f"{folder}/{name}")
            else:
                yield f"{folder}/{name}"

    def delete(self, name: str) -> ByteCount:
        """Delete an object, and give the bytes of the blocks that it took."""
        check_name(name)
        path = self._path(name)
        with converted(self._root):
            try:
                space = _space(os.lstat(path))
                os.unlink(path)
            except FileNotFoundError:
                return ByteCount(0)
        self._mark(name)
        return space

    @contextmanager
    def lease(self) -> Iterator[LocalLease]:
        """Tell every sweep what is needed, until the end or until this process dies."""
        path = self._path(f"{TEMPORARY}/{_LEASE}{os.getpid()}-{secrets.token_hex(8)}")
        with converted(self._root):
            # A sweep takes a lease that nobody holds for one of the dead.
            with self.writing():
                fd = self._open_temporary(path)
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            try:
                yield LocalLease(fd, self._root)
            finally:
                with suppress(FileNotFoundError):
                    os.unlink(path)
                # Closing is not enough: a child that was forked meanwhile has the lock, too, until it ends.
                fcntl.flock(fd, fcntl.LOCK_UN)
                os.close(fd)

    def pinned(self) -> frozenset[str]:
        """What the leases of the living say."""
        names: set[str] = set()
        for lease in self._living_leases():
            content = self._read(lease, 0, None, None) or b""
            names.update(content.decode("ascii", errors="replace").splitlines())
        return frozenset(names)

    def writing(self) -> AbstractContextManager[None]:
        """Hold off every sweep."""
        return lock.shared(self._path(LOCK), self._root)

    def sweeping(self, *, patient: bool) -> AbstractContextManager[None]:
        """Hold off everybody else who writes or sweeps."""
        return lock.alone(self._path(LOCK), self._root, patient=patient)

    def clear_leftovers(self) -> tuple[int, ByteCount]:
        """Remove the temporary files of writers that died."""
        count, space = 0, 0
        living = set(self._living_leases())
        for name in self.list(TEMPORARY):
            if name in living:
                continue
            with converted(self._root):
                space += _space(os.lstat(self._path(name)))
                os.unlink(self._path(name))
            count += 1
        return count, ByteCount(space)

    def _living_leases(self) -> tuple[str, ...]:
        """The leases that a process holds."""
        found = []
        for name in self.list(TEMPORARY):
            if not name.startswith(f"{TEMPORARY}/{_LEASE}"):
                continue
            with converted(self._root), suppress(FileNotFoundError):
                fd = os.open(self._path(name), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
                try:
                    fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    found.append(name)
                finally:
                    os.close(fd)
        return tuple(found)

    def _open_temporary(self, path: str) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_APPEND
        try:
            return os.open(path, flags, _FILE_MODE)
        except FileNotFoundError:
            # A copy of a store may lack its empty directories: git and object stores keep none.
            with suppress(FileExistsError):
                os.mkdir(self._path(TEMPORARY), _DIRECTORY_MODE)
            return os.open(path, flags, _FILE_MODE)

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    def _mark(self, name: str) -> None:
        """Have the next flush make this name durable: its folder, and those that hold the folder."""
        parts = name.split("/")[:-1]
        with self._marking:
            # A folder that another writer has just made is only durable once its own folder is.
            self._unflushed.update("/".join(parts[:depth]) for depth in range(len(parts) + 1))

    @contextmanager
    def _written(self, content: Content) -> Iterator[tuple[str, ByteCount]]:
        """A temporary file with this content, durable; it is gone afterwards, whatever happened."""
        temporary = self._path(f"{TEMPORARY}/{os.getpid()}-{secrets.token_hex(8)}")
        pieces = (content,) if isinstance(content, bytes) else content
        with converted(self._root, sum(map(len, pieces))):
            try:
                yield temporary, self._write_durably(temporary, pieces)
            finally:
                with suppress(FileNotFoundError):
                    os.unlink(temporary)

    def _write_durably(self, path: str, pieces: tuple[bytes, ...]) -> ByteCount:
        fd = self._open_temporary(path)
        try:
            for piece in pieces:
                rest = memoryview(piece)
                while rest:
                    rest = rest[os.write(fd, rest) :]
            os.fsync(fd)
            # Only now are the blocks known: before, many file systems have not allocated them yet.
            return _space(os.fstat(fd))
        finally:
            os.close(fd)

    def _link(self, temporary: str, name: str) -> bool:
        path = self._path(name)
        try:
            try:
                os.link(temporary, path)
            except FileNotFoundError:
                os.makedirs(os.path.dirname(path), _DIRECTORY_MODE, exist_ok=True)
                os.link(temporary, path)
        except FileExistsError:
            return False
        finally:
            # Also when it was there: whoever made it may not have flushed yet.
            self._mark(name)
        return True

    def _read(self, name: str, offset: int, count: int | None, limit: int | None) -> bytes | None:
        check_name(name)
        with converted(self._root):
            try:
                # Not to wait for ever where somebody put a FIFO.
                fd = os.open(self._path(name), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            except (FileNotFoundError, NotADirectoryError):
                return None
            try:
                size = _regular_size(fd, name)
                if limit is not None and size > limit:
                    raise _damaged(name, f"{size} bytes, and {limit} is the most")
                return _pread(fd, name, offset, size - offset if count is None else min(count, size - offset))
            finally:
                os.close(fd)


def sync_new_directory(path: str) -> None:
    """Make a directory durable that was just made: itself, and its name in the one above."""
    _fsync_directory(path)
    _fsync_directory(os.path.dirname(os.path.abspath(path)))


def _fsync_directory(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _space(found: os.stat_result) -> ByteCount:
    return ByteCount(found.st_blocks * _BLOCK_BYTES)


def _regular_size(fd: int, name: str) -> int:
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode):
        raise _damaged(name, "it is not a regular file")
    return found.st_size


def _pread(fd: int, name: str, offset: int, count: int) -> bytes:
    pieces: list[bytes] = []
    while count > 0:
        try:
            piece = os.pread(fd, count, offset)
        except OSError as error:
            if error.errno == errno.EIO:
                raise _damaged(name, "the disk cannot read it") from error
            raise
        if not piece:
            break
        pieces.append(piece)
        offset += len(piece)
        count -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _damaged(name: str, reason: str) -> ObjectCorrupt:
    return ObjectCorrupt(kind="object", name=name, reason=reason)
