"""Digests of files as they were at the freeze, taken after it, and remembered by identity.

Rules:
- A digest counts only if the file is the frozen one before and after it was read: same device, inode, size,
  mtime and ctime. Else it is CHANGED: what was read may be a mixture.
- A remembered digest is found by that identity and the generation. One of a file that was changed less than
  two seconds before is not remembered: the clock's tick is too coarse to tell a change after it.
Source: sha256 releases the GIL, so two threads use both cores.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import Final

from ckpt.model.inodes import DigestState
from ckpt.model.progress import UNWATCHED, Progress
from ckpt.units import SECOND, ByteCount, Digest

_THREADS: Final = 2
_EMPTY: Final = Digest(hashlib.sha256().hexdigest())
_READ_BYTES: Final = 1 << 20
_ENTRIES_MAX: Final = 100_000
_SETTLED_NS: Final = 2 * SECOND
_SCHEMA: Final = (
    "CREATE TABLE IF NOT EXISTS digests (device INTEGER, inode INTEGER, generation INTEGER, size INTEGER, "
    "mtime INTEGER, ctime INTEGER, digest TEXT NOT NULL, used INTEGER NOT NULL, "
    "PRIMARY KEY (device, inode, generation, size, mtime, ctime)) WITHOUT ROWID"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A file to be digested: a path that leads to it, and the identity that it must have."""

    path: str
    device: int
    inode: int
    generation: int
    size: int
    mtime_ns: int
    ctime_ns: int

    @property
    def identity(self) -> tuple[int, int, int, int, int, int]:
        """What it is remembered by."""
        return (self.device, self.inode, self.generation, self.size, self.mtime_ns, self.ctime_ns)


Result = tuple[Digest | None, DigestState]


class DigestCache:
    """Digests that were taken before, in a small database; losing it costs time only."""

    def __init__(self, path: str, progress: Progress = UNWATCHED) -> None:
        """Keep them in this file, which is made if it is missing; `progress` is told of what is read."""
        self._path = path
        self._progress = progress

    def take(self, wanted: Iterable[Wanted], limit: ByteCount) -> list[Result]:
        """The digests of these files, in their order; of those above `limit` bytes none is taken."""
        files = list(wanted)
        known = self._recall(files)
        self._progress.expect(
            sum(file.size for file in files if file.size <= limit and file.identity not in known)
        )
        with ThreadPoolExecutor(max_workers=_THREADS) as pool:
            results = list(
                pool.map(lambda file: _take(file, known.get(file.identity), limit, self._progress), files)
            )
        self._remember(
            (file, digest)
            for file, (digest, _) in zip(files, results, strict=True)
            if digest is not None and file.identity not in known
        )
        return results

    def keep(self, files: Iterable[tuple[Wanted, Digest]]) -> None:
        """Remember digests of files whose ctime this process has just changed, and nothing else of them.

        Their mtime tells of every change since: of a file that was written to shortly before, none is remembered.
        """
        self._insert(files, lambda file: file.mtime_ns)

    def _recall(self, files: list[Wanted]) -> dict[tuple[int, ...], Digest]:
        with suppress(sqlite3.Error, OSError), closing(self._open()) as database:
            query = (
                "SELECT digest FROM digests WHERE device=? AND inode=? AND generation=? AND size=? "
                "AND mtime=? AND ctime=?"
            )
            rows = {file.identity: database.execute(query, file.identity).fetchone() for file in files}
            return {identity: Digest(row[0]) for identity, row in rows.items() if row}
        return {}

    def _remember(self, taken: Iterable[tuple[Wanted, Digest]]) -> None:
        self._insert(taken, lambda file: max(file.mtime_ns, file.ctime_ns))

    def _insert(
        self, taken: Iterable[tuple[Wanted, Digest]], last_change_ns: Callable[[Wanted], int]
    ) -> None:
        now = time.time_ns()
        rows = [
            (*file.identity, digest, now // SECOND)
            for file, digest in taken
            if now - last_change_ns(file) > _SETTLED_NS
        ]
        if not rows:
            return
        try:
            with closing(self._open()) as database, database:
                database.executemany("INSERT OR REPLACE INTO digests VALUES (?,?,?,?,?,?,?,?)", rows)
                database.execute(
                    "DELETE FROM digests WHERE used <= (SELECT used FROM digests ORDER BY used DESC "
                    "LIMIT 1 OFFSET ?)",
                    (_ENTRIES_MAX,),
                )
        except (sqlite3.OperationalError, OSError):
            pass  # somebody else writes, it cannot be written, or the disk is full: files are read again
        except sqlite3.DatabaseError:
            with suppress(OSError):
                os.unlink(self._path)

    def _open(self) -> sqlite3.Connection:
        os.makedirs(os.path.dirname(self._path), mode=0o700, exist_ok=True)
        database = sqlite3.connect(self._path, timeout=5)
        try:
            # Losing the last entries in a power cut is no loss.
            database.execute("PRAGMA synchronous=OFF")
            database.execute(_SCHEMA)
        except sqlite3.Error:
            database.close()
            raise
        return database


def digest_of(fd: int, progress: Progress = UNWATCHED) -> Digest:
    """The SHA-256 of what is left to read of an open file."""
    digest = hashlib.sha256()
    buffer = bytearray(_READ_BYTES)
    view = memoryview(buffer)
    while count := os.readv(fd, [buffer]):
        digest.update(view[:count])
        progress.moved(count)
    return Digest(digest.hexdigest())


def _take(file: Wanted, known: Digest | None, limit: ByteCount, progress: Progress) -> Result:
    if file.size > limit:
        return None, DigestState.OVER_LIMIT
    try:
        if known is not None:
            unchanged = _is_the_frozen(file, os.lstat(file.path))
            return (known, DigestState.STABLE) if unchanged else (None, DigestState.CHANGED)
        fd = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None, DigestState.CHANGED
    except OSError:
        return None, DigestState.UNREADABLE
    try:
        if not _is_the_frozen(file, os.fstat(fd)):
            return None, DigestState.CHANGED
        # A file of /proc says that it is empty, and may have no end (pagemap).
        digest = digest_of(fd, progress) if file.size else _EMPTY
        if not _is_the_frozen(file, os.fstat(fd)):
            return None, DigestState.CHANGED
    except OSError:
        return None, DigestState.UNREADABLE
    else:
        return digest, DigestState.STABLE
    finally:
        os.close(fd)


def _is_the_frozen(file: Wanted, status: os.stat_result) -> bool:
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns) == (
        file.device,
        file.inode,
        file.size,
        file.mtime_ns,
        file.ctime_ns,
    )
