"""The memory that a restored workload gets out of the store when it runs already. Fits the port `LateMemory`.

Rules:
- What may come later is left out of the image sets, which are as those of a lazy dump then: pages files without it, and
  page maps that say so. All else is there, verified, before anything is started.
- The keeper and who reads the store are threads of this process. Its end is the keeper's, and so the workload's: the
  holder, a process of its own, ends what lacks memory for ever. The checkpoint stays in the store.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from ckpt.errors import (
    CkptError,
    FeatureMissing,
    NoSpace,
    ObjectCorrupt,
    ObjectMissing,
    OsRefused,
    PeerFailed,
    RestoreFailed,
)
from ckpt.host.criu import engine
from ckpt.host.criu.left_pages import LeftPages, pages_to_leave
from ckpt.host.lazy.keeper import Keeper
from ckpt.host.lazy.local_link import LocalLink
from ckpt.host.lazy.serving import PageServer
from ckpt.host.lazy.stored_pages import Read, StoredPages
from ckpt.host.operations import JournaledOperation
from ckpt.host.signals import unheard
from ckpt.model.checkpoint import StoredFile
from ckpt.model.memory import PageRun
from ckpt.model.needs import KernelFeature
from ckpt.units import PAGE_BYTES, ByteCount, CheckpointId, Pid, human_bytes

_PAGES: Final = "pages-"
_SOCKET: Final = "pages"
_SILENCE_S: Final = 600.0
"""Neither end gives the other up for a store that is slow."""

_READ_BYTES_MAX: Final = 4 << 20
_FULL: Final = (errno.ENOSPC, errno.EDQUOT)
_TELL_EVERY_S: Final = 1.0
_ENDED: Final = "It ran already and was ended, as not all of its memory could come."
_REMEDY: Final = "The checkpoint is in the store as it was: restore it again, or without --lazy."
_KEEPER_FAILED: Final = "who brings it has failed"


class StoredMemory:
    """What follows one restore."""

    def __init__(
        self,
        criu: Path,
        read: Callable[[CheckpointId, StoredFile, int, int], bytes],
        tell: Callable[[str], None],
    ) -> None:
        """Have nothing to bring yet.

        Args:
            criu: The CRIU that restores.
            read: Gives the verified bytes of a stored file from an offset on.
            tell: Told of how far it is.
        """
        self._criu = criu
        self._read_stored = read
        self._tell = tell
        self._pages = StoredPages()
        self._left = 0
        self._sent = 0
        self._failure: CkptError | None = None
        self._reason = ""
        self._operation: JournaledOperation | None = None
        self._links: tuple[LocalLink, ...] = ()
        self._threads: tuple[threading.Thread, ...] = ()

    def check(self) -> None:
        """Return if this host can bring memory later.

        Raises:
            FeatureMissing: it cannot.
        """
        if not engine.memory_can_follow(self._criu):
            raise FeatureMissing(
                feature=KernelFeature.USERFAULTFD.value,
                remedy="Restore without --lazy: all memory is there then before it goes on.",
            )

    @property
    def left_bytes(self) -> ByteCount:
        """How much take() has left out."""
        return ByteCount(self._left)

    def take(
        self, checkpoint: CheckpointId, root: Pid, images: str, files: Sequence[StoredFile]
    ) -> tuple[StoredFile, ...]:
        """Bring later what can be of this image set, whose files but for pages lie in `images`.

        Returns:
            The files that must be there whole.

        Raises:
            ObjectMissing, ObjectCorrupt: the images are damaged.
            OsRefused, NoSpace: they cannot be written.
        """

        def read(file: StoredFile, offset: int, size: int) -> bytes:
            return self._read_stored(checkpoint, file, offset, size)

        whole = {file.name: file for file in files if self.has_pages(file)}
        for process in pages_to_leave(Path(images)):
            file = whole.pop(process.pages_file, None)
            if file is None or file.size_bytes != process.page_count * PAGE_BYTES:
                raise ObjectCorrupt(
                    kind="image file",
                    name=process.page_map.name,
                    reason=f"it tells of {process.page_count} pages in {process.pages_file}, which "
                    + (f"has {file.size_bytes} bytes" if file else "is not there"),
                )
            _write_present(process, file, Path(images) / file.name, read)
            process.leave()
            self._pages.add(root, process.pid, file, process.left, read)
            self._left += PAGE_BYTES * sum(run.count for run in process.left)
        return tuple(whole.values())

    @staticmethod
    def has_pages(file: StoredFile) -> bool:
        """Whether this file of an image set has pages: take() says which of those are wanted."""
        return file.name.startswith(_PAGES)

    def begin(self, operation: object) -> str:
        """Serve from now on; gives the path of the socket at which the restore announces itself.

        Raises:
            OsRefused: what is needed cannot be started.
        """
        if not isinstance(operation, JournaledOperation):
            raise TypeError(operation)
        self._operation = operation
        place = f"{operation.staging}/{_SOCKET}"
        keepers, own = self._links = LocalLink.pair("the keeper of its pages", "the store")
        keeper = Keeper(place, keepers, silence_s=_SILENCE_S)
        self._threads = (
            threading.Thread(target=self._keep, args=(keeper,), name="keeper", daemon=True),
            threading.Thread(target=self._serve, args=(own,), name="pages", daemon=True),
        )
        for thread in self._threads:
            thread.start()
        return place

    def follow(self) -> CkptError | None:
        """Return when all memory is there, with None; or when the workload was ended, with the reason.

        Never raises, and is safe to repeat. Nothing interrupts it: that would be the workload's end.
        """
        with unheard():
            if self._operation is not None:
                # Only a note: what it is about goes on.
                with suppress(CkptError):
                    self._operation.note_phase("follows")
            while self._threads[0].is_alive():
                self._tell(f"its memory follows: {human_bytes(self._sent)} of {human_bytes(self._left)}")
                self._threads[0].join(_TELL_EVERY_S)
        self.close()
        if not self._reason:
            return None
        match self._failure:
            case None:
                return RestoreFailed(cause=f"{self._reason}. {_ENDED}", remedy=_REMEDY)
            case ObjectCorrupt(kind=kind, name=name, reason=reason, remedy=remedy):
                return ObjectCorrupt(kind=kind, name=name, reason=reason, remedy=f"{_ENDED} {remedy}")
            case ObjectMissing(place=place, kind=kind, name=name, remedy=remedy):
                return ObjectMissing(place=place, kind=kind, name=name, remedy=f"{_ENDED} {remedy}")
            case failure:
                return failure

    def close(self) -> None:
        """End it, and the workload with it if that runs and has not all; safe to repeat."""
        for link in self._links:
            link.end()
        for thread in self._threads:
            thread.join()
        for link in self._links:
            link.close()

    def _keep(self, keeper: Keeper) -> None:
        self._reason = _KEEPER_FAILED
        self._reason = keeper.run()

    def _serve(self, link: LocalLink) -> None:
        server = PageServer(link, self._pages, self._note)
        try:
            server.await_ready(_SILENCE_S)
            server.serve()
        except PeerFailed:  # the keeper says why
            pass
        except CkptError as error:
            self._failure = error
        finally:
            link.end()

    def _note(self, count: int) -> None:
        self._sent += count


def _write_present(process: LeftPages, file: StoredFile, path: Path, read: Read) -> None:
    """Make the pages file of the pages that do not come later."""
    try:
        with path.open("xb") as stream:
            for run in process.present:
                for offset, size in _pieces(run):
                    stream.write(read(file, offset, size))
    except OSError as error:
        if error.errno in _FULL:
            space = os.statvfs(path.parent)
            raise NoSpace(
                place=str(path.parent),
                available_bytes=space.f_bavail * space.f_frsize,
                needed_bytes=PAGE_BYTES * sum(run.count for run in process.present),
            ) from error
        raise OsRefused(operation="write", subject=str(path), reason=error.strerror or str(error)) from error


def _pieces(run: PageRun) -> Iterator[tuple[int, int]]:
    assert run.chunk is not None  # it is in the pages file
    start, end = run.chunk * PAGE_BYTES, (run.chunk + run.count) * PAGE_BYTES
    return ((at, min(_READ_BYTES_MAX, end - at)) for at in range(start, end, _READ_BYTES_MAX))
