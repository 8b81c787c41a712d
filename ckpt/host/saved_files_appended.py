"""Files that only ever grow, as a job's log does: of them no more is done under the freeze than to see where they end.

Rules:
- What a file holds up to there is read after the thaw, and never more: what is appended meanwhile is not of the
  checkpoint's instant. One that was cut short meanwhile is kept as far as it goes, and that is told.
- A small one is read under the freeze: it costs nothing, and it may as well be one that is written anew.
- In ckpt's own directory only what JOB_FILES names is saved, and only that is written back (saved_files_look.py).
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Final

from ckpt.errors import OsRefused
from ckpt.host.inodes.attributes import attributes_of
from ckpt.host.inodes.places import is_plain
from ckpt.host.saved_files_found import FoundFile, is_below, name_some
from ckpt.host.saved_files_record import READ, content_name, saved_file
from ckpt.model.checkpoint import SavedFile
from ckpt.units import ByteCount

JOB_FILES: Final = frozenset(("log", "log.stderr", "stdin.position"))
"""The files in a job's directory that go with its memory."""

SMALL_BYTES_MAX: Final = 1 << 16

_JOB_FILE: Final = re.compile(r"/jobs/(?P<job>[A-Za-z0-9][A-Za-z0-9._-]{0,63})/(?P<name>[^/]+)", re.ASCII)


def job_of_own_file(path: str, own: str) -> str:
    """The job of which the path names one of JOB_FILES, "" for any other path below ckpt's own directory."""
    match = _JOB_FILE.fullmatch(path[len(own) :]) if is_below(path, own) else None
    return match["job"] if match and match["name"] in JOB_FILES else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ending:
    """An open file, as it was when the workload stood still; `head` is its content if that was small."""

    fd: int
    file: SavedFile
    head: bytes | None


class AppendedFiles:
    """The appended files of one dump."""

    def __init__(self, paths: Sequence[str], own: str) -> None:
        """Those at these paths; `own` is ckpt's own directory."""
        own = os.path.realpath(own)
        resolved = tuple(dict.fromkeys(map(os.path.realpath, paths)))
        self.paths = frozenset(
            path
            for path in resolved
            if is_plain(path) and (not is_below(path, own) or job_of_own_file(path, own))
        )
        self._refused = [path for path in resolved if path not in self.paths]
        self._endings: list[_Ending] = []
        self._shortened: list[str] = []

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user should know of them, in sentences."""
        told = (
            (self._refused, "{count} log(s) are in ckpt's own directory and are not saved: {named}"),
            (
                self._shortened,
                "{count} log(s) were cut short while they were saved, and have only what was left: {named}",
            ),
        )
        return tuple(
            sentence.format(count=len(paths), named=name_some(paths)) for paths, sentence in told if paths
        )

    def note_ends(self) -> None:
        """See where each ends, in the `stopped` call; one that is missing, or no regular file, is left out.

        Raises:
            OsRefused: one cannot be opened.
        """
        for path in sorted(self.paths):
            try:
                self._note_end(path)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise _unreadable(path, error) from error

    def read(self) -> Iterator[tuple[SavedFile, Callable[[int], bytes]]]:
        """Each file, and a reader of what it held; after the thaw.

        Raises:
            OsRefused: one cannot be read.
        """
        self._shortened.clear()
        for ending in self._endings:
            file = ending.file
            if ending.head is not None:
                yield file, _reader_of(ending.head)
                continue
            left = os.fstat(ending.fd).st_size
            if left < file.content.size_bytes:
                self._shortened.append(file.path)
                file = replace(file, content=replace(file.content, size_bytes=ByteCount(left)))
            yield file, _reader_from(ending.fd, file)

    def drop(self) -> None:
        """Close them; safe to repeat."""
        while self._endings:
            os.close(self._endings.pop().fd)

    def _note_end(self, path: str) -> None:
        with ExitStack() as opened:
            fd = os.open(path, READ)
            opened.callback(os.close, fd)
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                return
            head = os.pread(fd, status.st_size, 0) if status.st_size <= SMALL_BYTES_MAX else None
            size = status.st_size if head is None else len(head)
            found = FoundFile(path=path, status=status)
            file = saved_file(found, content_name(path), attributes_of(fd), size=size)
            self._endings.append(_Ending(fd=fd, file=file, head=head))
            opened.pop_all()


def _reader_of(content: bytes) -> Callable[[int], bytes]:
    at = 0

    def read(count: int) -> bytes:
        nonlocal at
        piece = content[at : at + count]
        at += len(piece)
        return piece

    return read


def _reader_from(fd: int, file: SavedFile) -> Callable[[int], bytes]:
    at = 0

    def read(count: int) -> bytes:
        nonlocal at
        try:
            piece = os.pread(fd, min(count, file.content.size_bytes - at), at)
        except OSError as error:
            raise _unreadable(file.path, error) from error
        at += len(piece)
        return piece

    return read


def _unreadable(path: str, error: OSError) -> OsRefused:
    return OsRefused(operation="read", subject=path, reason=error.strerror or str(error))
