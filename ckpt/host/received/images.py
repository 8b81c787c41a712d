"""What a migration's target has received: pages in rounds, then the image files; and its image sets.

    DIRECTORY/spaces/ROOT/ID-PAGEMAP/   the pages of a space in levels (space.py, level.py)
    DIRECTORY/files/ROOT/NAME           the other image files of the tree
    DIRECTORY/chains/ROOT/              parents of an image set that was laid out (layout.py)

Rules:
- Everything comes from another host: names, numbers and sizes are judged before anything is done with them.
- The state is on disk. A process that dies loses nothing that a call returned for; a crash of the host before
  settle() can leave any content in pages and files. A source that goes on compares known() with what it has.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Final

from ckpt.codec.names import refuse_component
from ckpt.errors import CkptError, ObjectCorrupt, OsRefused
from ckpt.host.received import layout
from ckpt.host.received.durable import Unwritten, writing
from ckpt.host.received.space import ReceivedSpace
from ckpt.host.received.table import pieces_of
from ckpt.model.pages import PageRun
from ckpt.units import PAGE_BYTES, Pid

SPACES_MAX: Final = 1 << 16
"""Spaces of one migration: processes and pieces of shared memory."""

FILES_MAX: Final = 1 << 20
"""Image files and files that come with them: 13 of each process, one of each pipe's content."""

FILE_BYTES_MAX: Final = 1 << 40

KNOWN_PAGES_MAX: Final = 1 << 16

_SPACE: Final = re.compile(r"([1-9][0-9]{0,9})/(pagemap-(?:shmem-)?[0-9]{1,20})", re.ASCII)
_STORED: Final = re.compile(r"([0-9]{1,5})-(pagemap-(?:shmem-)?[0-9]{1,20})", re.ASCII)
_NOT_SENT: Final = re.compile(r"parent|pages-.*\.img", re.ASCII)
_REMEDY: Final = "The other host sends what it must not: look at the ckpt there."


class ReceivedImages:
    """What has come of a migration, in a directory of its own. One thread calls it.

    Raises (every method):
        ObjectCorrupt: what came is not what may come, or what was kept is damaged.
        NoSpace, OsRefused: it cannot be written or read.
    """

    def __init__(self, directory: str) -> None:
        """Open what is in the directory, which is made if it is not there."""
        self._directory = directory
        self._unwritten = Unwritten()
        self._spaces: dict[str, ReceivedSpace] = {}
        self.received_bytes = 0
        """Bytes of pages and files that have come since it was opened."""
        with writing(os.path.dirname(directory) or "."):
            os.makedirs(directory, 0o700, exist_ok=True)
        with writing(directory):
            for name in ("files", "spaces", "chains"):
                os.makedirs(f"{directory}/{name}", 0o700, exist_ok=True)
            self._files = sum(self._note_files())
            self._read_spaces()
        self._unwritten.add(directory, os.path.dirname(os.path.abspath(directory)))

    def pages(self, space: str, runs: Sequence[PageRun], content: bytes | memoryview) -> None:
        """Keep pages: new ones in this round's level, and those that are known in place of their former content.

        Args:
            space: "ROOT/PAGEMAP", the pid of a tree's root and the name of CRIU's page map, as "4711/pagemap-1".
            runs: Which pages, ascending.
            content: The pages one after another.
        """
        match = _SPACE.fullmatch(space)
        if match is None:
            raise _refused("space", space, "it is not a root's pid and the name of a page map")
        view = memoryview(content).cast("B")
        count, rest = divmod(len(view), PAGE_BYTES)
        if rest:
            raise _refused("content", space, f"{len(view)} bytes are not a number of pages")
        try:
            pieces = pieces_of(runs, count)
        except ValueError as error:
            raise _refused("list of pages", space, str(error)) from error
        if not count:
            return
        self._space(match[1], match[2]).write(pieces, view)
        self.received_bytes += len(view)

    def end_round(self) -> None:
        """New pages go to another level from here on; what has come is written out meanwhile, in a thread."""
        for space in self._spaces.values():
            space.end_round()
        self._unwritten.begin()

    def write_file(self, root: Pid, name: str, mode: int, offset: int, content: bytes | memoryview) -> None:
        """Keep a piece of an image file; the one at 0 begins the file anew.

        Args:
            root: The pid of the tree's root; 0 for files that belong to no tree.
            name: Its name, which is no path.
            mode: Its permissions.
            offset: Where the piece begins.
            content: Its bytes.
        """
        view = memoryview(content).cast("B")
        reason = refuse_component(name)
        if not reason and _NOT_SENT.fullmatch(name):
            reason = "its pages come as pages, and the link is made here"
        if not 0 <= root < 1 << 31:
            reason = reason or f"{root} is no pid"
        if not 0 <= mode <= 0o7777:
            reason = reason or f"{mode:#o} are no permissions"
        if not 0 <= offset <= FILE_BYTES_MAX - len(view):
            reason = reason or f"{len(view)} bytes at {offset} are beyond {FILE_BYTES_MAX}"
        if reason:
            raise _refused("file", name[:80], reason)
        self._write_file(f"{self._directory}/files/{root}", name, mode, offset, view)
        self.received_bytes += len(view)

    def settle(self) -> None:
        """Make all that has come durable: from here on lay_out() works after a crash of the host too."""
        for space in self._spaces.values():
            space.end_round()
        self._unwritten.finish()

    def known(self) -> Iterator[tuple[str, list[PageRun], bytes]]:
        """What is here: a space, pages of it, and the SHA-256 of each, one after another.

        At most KNOWN_PAGES_MAX pages come at once; the runs are ascending within each answer.
        """
        for name, space in self._spaces.items():
            for runs, digests in space.digests(KNOWN_PAGES_MAX):
                yield name, runs, digests

    def lay_out(self, root: Pid, directory: str, names: Sequence[str]) -> None:
        """Fill a directory so that CRIU restores the tree from it, as often as it is wanted.

        It goes on needing what is here: it is to be removed first.

        Args:
            root: The pid of the tree's root at the source.
            directory: An empty directory, below the same mount as this one.
            names: The image files of the tree, page maps among them.
        """
        for name in names:
            if reason := refuse_component(name):
                raise _refused("file", name[:80], reason)
        if len(set(names)) != len(names):
            raise _refused("list of files", str(root), "a name is there twice")
        prefix = f"{root}/"
        for name, space in self._spaces.items():
            if name.startswith(prefix):
                space.end_round()
        layout.lay_out(
            f"{self._directory}/files/{root}",
            names,
            lambda page_map: self._spaces.get(prefix + page_map),
            chain=f"{self._directory}/chains/{root}",
            directory=directory,
        )

    def close(self) -> None:
        """Return when nothing is written out any more; what has come stays."""
        self._unwritten.wait()

    def remove(self) -> None:
        """Remove the directory and all in it."""
        self._unwritten.forget()
        self._spaces.clear()
        try:
            shutil.rmtree(self._directory)
        except FileNotFoundError:
            return
        except OSError as error:
            raise OsRefused(
                operation="remove", subject=self._directory, reason=error.strerror or str(error)
            ) from error

    def _space(self, root: str, page_map: str) -> ReceivedSpace:
        name = f"{root}/{page_map}"
        space = self._spaces.get(name)
        if space is None:
            pages_id = len(self._spaces) + 1
            if pages_id > SPACES_MAX:
                raise _refused("space", name, f"there are {SPACES_MAX} already")
            space = self._open_space(root, f"{pages_id}-{page_map}", pages_id)
            self._spaces[name] = space
        return space

    def _open_space(self, root: str, folder: str, pages_id: int) -> ReceivedSpace:
        above = f"{self._directory}/spaces"
        self._unwritten.add(above, f"{above}/{root}")
        return ReceivedSpace(f"{above}/{root}/{folder}", pages_id, self._unwritten)

    def _read_spaces(self) -> None:
        stored = [
            (int(match[1]), root, match)
            for root in os.listdir(f"{self._directory}/spaces")
            for folder in os.listdir(f"{self._directory}/spaces/{root}")
            if (match := _STORED.fullmatch(folder))
        ]
        for pages_id, root, match in sorted(stored, key=lambda each: each[0]):
            self._spaces[f"{root}/{match[2]}"] = self._open_space(root, match[0], pages_id)

    def _note_files(self) -> Iterator[int]:
        """How many files each directory has; all are noted, as nobody knows what the disk has of them."""
        above = f"{self._directory}/files"
        self._unwritten.add(above)
        for root in os.listdir(above):
            names = os.listdir(f"{above}/{root}")
            self._unwritten.add(f"{above}/{root}", *(f"{above}/{root}/{name}" for name in names))
            yield len(names)

    def _write_file(self, folder: str, name: str, mode: int, offset: int, view: memoryview) -> None:
        path = f"{folder}/{name}"
        flags = os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
        with writing(self._directory, len(view)):
            if offset == 0:
                self._make_way(folder, path)
                flags |= os.O_CREAT | os.O_EXCL
            fd = os.open(path, flags, 0o600)
            try:
                os.fchmod(fd, mode)
                written = 0
                while written < len(view):
                    written += os.pwrite(fd, view[written:], offset + written)
            finally:
                os.close(fd)
        self._unwritten.add(path)

    def _make_way(self, folder: str, path: str) -> None:
        """Make the directory, and remove an earlier file: it may have been linked into an image set."""
        if not os.path.isdir(folder):
            os.mkdir(folder, 0o700)
            self._unwritten.add(os.path.dirname(folder))
        self._unwritten.add(folder)
        with suppress(FileNotFoundError):
            os.unlink(path)
            return
        self._files += 1
        if self._files > FILES_MAX:
            raise _refused("file", path, f"there are {FILES_MAX} already")


def _refused(kind: str, name: str, reason: str) -> CkptError:
    return ObjectCorrupt(kind=kind, name=repr(name[:80]), reason=reason, remedy=_REMEDY)
