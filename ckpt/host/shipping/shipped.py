"""The source of shipped files: passes while the workload runs, and the last one while it stands still.

Rules:
- Each pass sends the blocks of which the target is not known to have that content.
- Under the freeze a file is not read again that has not changed since an earlier pass. Its times prove that only if
  they were old enough then, and if no process mapped it for writing.
- While the last pass reads, nobody of the workload writes: what changes nevertheless has another writer, and is told.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Final, Protocol

from ckpt.errors import OsRefused, PeerFailed
from ckpt.host.inodes.attributes import attributes_of
from ckpt.host.inodes.places import is_plain
from ckpt.host.saved_files_found import Found, FoundFile, check_paths, find_files, is_below, name_some
from ckpt.host.saved_files_record import saved_file, version_of
from ckpt.host.shipping.blocks import (
    BLOCK_BYTES,
    DIGEST_BYTES,
    FILE_BYTES_MAX,
    OFFERED_BLOCKS_MAX,
    BlockTable,
    FileDigests,
    Piece,
    blocks_of,
    pieces_of,
)
from ckpt.host.shipping.companions import companions_of
from ckpt.host.shipping.mapped import written_by_map
from ckpt.host.shipping.matching import Content, Contents
from ckpt.model.checkpoint import ExtendedAttribute
from ckpt.model.shipping import Shipment, ShippedDirectory, content_name
from ckpt.units import SECOND, Digest, Pid

OPTION: Final = "--ship"
_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOATIME | os.O_CLOEXEC
_SETTLED_NS: Final = 2 * SECOND
"""How old the last change of a file must be, so that a later one is sure to show in its times."""

_ASKED_AT_ONCE: Final = 64
_UNKNOWN: Final = bytes(DIGEST_BYTES)
"""What no block has for its digest."""

_NO_BYTES: Final = memoryview(b"")


class BlockSink(Protocol):
    """Where blocks go."""

    def blocks(self, number: int, path: str, size: int, first_block: int, content: memoryview) -> None:
        """Take blocks of one file that follow each other; consumed when this returns.

        Args:
            number: The content, counted from 0.
            path: Where the target looks for a former content of it.
            size: The size of the whole file from now on, in bytes: what is missing up to it are zeros.
            first_block: The first of the blocks.
            content: At most 4 MiB, and whole blocks but for the end of the file; none if only the size changes.
        """


Ask = Callable[[Sequence[tuple[int, str]]], Iterable[FileDigests | None]]
"""What the target has at each of these paths, and will take the content of that number for a change of."""


class ShippedFiles:
    """The files of one migration, on the source."""

    def __init__(self, paths: Sequence[str], own: str) -> None:
        """Check the paths of files and directories, as the user named them; `own` is ckpt's own directory.

        Raises:
            Usage: one cannot be sent.
        """
        self._paths = check_paths(paths, own, option=OPTION)
        self._contents = Contents()
        self._sent_bytes = 0

    @property
    def sent_bytes(self) -> int:
        """How many bytes of files were given to sinks."""
        return self._sent_bytes

    def covers(self, path: str) -> bool:
        """Whether a file at this path is sent."""
        return any(is_below(path, each) for each in self._paths)

    def add(self, paths: Iterable[str]) -> None:
        """Send these files, too, from the next pass on: what the workload holds open may change at any moment."""
        self._paths = tuple(sorted({*self._paths, *filter(is_plain, paths)}))

    def first_pass(self, sink: BlockSink, ask: Ask, pids: Collection[Pid]) -> None:
        """Send what the target lacks, while the workload runs; each further call sends what has changed since.

        Args:
            sink: Where blocks go.
            ask: How the target is asked.
            pids: The workload's processes.

        Raises:
            OsRefused: a file cannot be read.
            Usage: there are too many files.
            PeerFailed: the target's answer is nonsense.
        """
        mapped = written_by_map(pids)
        found, _ = self._find()
        files = self._contents.match(found.files)
        _ask([content for content, _ in files if not content.is_there], ask)
        for content, file in files:
            if content.version != version_of(file.status):
                self._send(content, file, sink, mapped, patient=True)

    def last_pass(self, sink: BlockSink) -> Shipment:
        """Send what has changed, while the workload stands still; gives what the files are now.

        Raises:
            OsRefused, Usage: as first_pass() says.
        """
        found, absent = self._find()
        files = self._contents.match(found.files)
        changed = []
        for content, file in files:
            if content.version != version_of(file.status):
                self._send(content, file, sink, frozenset(), patient=False)
                if version_of(file.status) != _version_at(file.path):
                    changed.append(file.path)
        roots: dict[int, Digest] = {}
        saved = []
        for file in found.files:
            content = self._contents.of(file)
            # What went while it was looked at is not there.
            if content.is_there:
                if content.number not in roots:
                    roots[content.number] = content.table.root(content.size)
                name, root = content_name(content.number), roots[content.number]
                attributes = _attributes_of(file.path)
                saved.append(saved_file(file, name, attributes, size=content.size, root=root))
        return Shipment(
            files=tuple(saved),
            directories=tuple(found.directories),
            absent=absent,
            made=tuple(
                ShippedDirectory(
                    path=each.path,
                    mode=stat.S_IMODE(each.status.st_mode),
                    uid=each.status.st_uid,
                    gid=each.status.st_gid,
                )
                for each in found.walked
            ),
            warnings=(*found.warnings, *_changed_warnings(changed)),
        )

    def _find(self) -> tuple[Found, tuple[str, ...]]:
        """The files that are there now, and the paths at which none is, and none may be."""
        found = find_files(self._paths, option=OPTION)
        inside = tuple(found.directories)
        named = {file.path for file in found.files}
        beside = {
            other
            for path in self._paths
            if path in named
            for other in companions_of(path)
            if other not in named and not any(is_below(other, directory) for directory in inside)
        }
        there = sorted(path for path in beside if os.path.lexists(path))
        found.files += find_files(there, option=OPTION).files
        absent = tuple(sorted({*found.gone, *beside} - {file.path for file in found.files}))
        found.gone.clear()
        return found, absent

    def _send(
        self,
        content: Content,
        file: FoundFile,
        sink: BlockSink,
        mapped: frozenset[tuple[int, int]],
        *,
        patient: bool,
    ) -> None:
        """Send what differs; nothing if the file is gone, or another one by now."""
        now_ns, fd = time.time_ns(), _open(file.path, patient=patient)
        if fd is None:
            return
        try:
            status = os.fstat(fd)
            if os.path.samestat(status, file.status):
                # Until all of it has been sent, nothing proves that the target has it.
                content.version = None
                self._send_blocks(content, fd, status.st_size, sink)
                is_settled = now_ns - max(status.st_mtime_ns, status.st_ctime_ns) > _SETTLED_NS
                if is_settled and (status.st_dev, status.st_ino) not in mapped:
                    content.version = version_of(status)
        finally:
            os.close(fd)

    def _send_blocks(self, content: Content, fd: int, size: int, sink: BlockSink) -> None:
        if size > FILE_BYTES_MAX:
            raise _refused(content.path, f"it has {size} bytes, and at most {FILE_BYTES_MAX} are sent")
        if not content.is_there or content.size != size:
            self._resize(content, size, sink)
        for piece in _pieces_of(fd, size, content.path):
            for first, count in _differing(piece, content.table):
                at = (first - piece.first_block) * BLOCK_BYTES
                blocks = piece.content[at : at + count * BLOCK_BYTES]
                sink.blocks(content.number, content.path, size, first, blocks)
                self._sent_bytes += len(blocks)
            content.table.put(piece.first_block, piece.digests)

    def _resize(self, content: Content, size: int, sink: BlockSink) -> None:
        """Let the target's file be so long."""
        if content.size and not content.is_there:
            sink.blocks(content.number, content.path, content.size, 0, _NO_BYTES)
        sink.blocks(content.number, content.path, size, 0, _NO_BYTES)
        if size < content.size:
            content.table.cut(blocks_of(size))
            if size % BLOCK_BYTES:
                content.table.put(size // BLOCK_BYTES, _UNKNOWN)
        content.size, content.is_there = size, True


def _open(path: str, *, patient: bool) -> int | None:
    """The file, open; None if it is gone.

    `patient` leaves out what a running program holds a lease on: opening it would have to wait.
    """
    with _told(path):
        try:
            return os.open(path, _READ)
        except FileNotFoundError:
            return None
        except BlockingIOError:
            if patient:
                return None
            raise


def _attributes_of(path: str) -> tuple[ExtendedAttribute, ...]:
    with _told(path), suppress(FileNotFoundError):
        return attributes_of(path)
    return ()


def _pieces_of(fd: int, size: int, path: str) -> Iterator[Piece]:
    with _told(path):
        yield from pieces_of(fd, size)


@contextmanager
def _told(path: str) -> Iterator[None]:
    """Foreign errors become ours."""
    try:
        yield
    except OSError as error:
        raise _refused(path, error.strerror or str(error)) from error


def _ask(contents: list[Content], ask: Ask) -> None:
    for at in range(0, len(contents), _ASKED_AT_ONCE):
        some = contents[at : at + _ASKED_AT_ONCE]
        for content, answer in zip(some, ask([(each.number, each.path) for each in some]), strict=True):
            if answer is not None:
                _take_answer(content, answer)


def _take_answer(content: Content, answer: FileDigests) -> None:
    digests = min(blocks_of(answer.size), OFFERED_BLOCKS_MAX) * DIGEST_BYTES
    if not 0 <= answer.size <= FILE_BYTES_MAX or len(answer.digests) != digests:
        raise PeerFailed(
            host="the target",
            reason=f"it says that {content.path} has {answer.size} bytes there, and gives "
            f"{len(answer.digests)} bytes of digests",
        )
    # What lies beyond the digests is cut off by the first message, and so is known to be zeros.
    content.is_there = answer.size <= OFFERED_BLOCKS_MAX * BLOCK_BYTES
    content.size = min(answer.size, OFFERED_BLOCKS_MAX * BLOCK_BYTES)
    content.table.put(0, answer.digests)


def _differing(piece: Piece, table: BlockTable) -> Iterator[tuple[int, int]]:
    """The blocks of the piece that are not as the table says: the first of each run, and their count."""
    count = len(piece.digests) // DIGEST_BYTES
    known = table.get(piece.first_block, count)
    if known == piece.digests:
        return
    start = -1
    for index in range(count + 1):
        at = index * DIGEST_BYTES
        differs = index < count and known[at : at + DIGEST_BYTES] != piece.digests[at : at + DIGEST_BYTES]
        if differs and start < 0:
            start = index
        if not differs and start >= 0:
            yield piece.first_block + start, index - start
            start = -1


def _version_at(path: str) -> tuple[int, ...]:
    try:
        return version_of(os.stat(path, follow_symlinks=False))
    except OSError:
        return ()


def _changed_warnings(paths: Sequence[str]) -> tuple[str, ...]:
    if not paths:
        return ()
    sentence = (
        f"{len(paths)} shipped file(s) were written to by another process while the workload stood still, "
        f"so they are not of one instant: {name_some(paths)}"
    )
    return (sentence,)


def _refused(path: str, reason: str) -> OsRefused:
    return OsRefused(operation="send", subject=path, reason=reason)
