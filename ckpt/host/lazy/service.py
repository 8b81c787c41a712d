"""The memory of a workload that runs on the target already, served from here until all of it is there.

Rules:
- It serves before the target restores: what CRIU and we ourselves touch there of the memory comes this way, too.
- Once the workload runs there nothing interrupts this: Ctrl-C would be its end.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final, Protocol

from ckpt.errors import CkptError, PagesLost
from ckpt.host.criu.addresses import lazy_pages_in
from ckpt.host.lazy.serving import PageServer
from ckpt.host.lazy.task_memory import TaskMemory
from ckpt.host.lazy.wire import Link
from ckpt.host.signals import uninterrupted
from ckpt.model.workload import Tree
from ckpt.units import PAGE_BYTES, ByteCount, human_bytes

_TELL_EVERY_S: Final = 1.0


class ClosingLink(Link, Protocol):
    """The way to the other end, which can be closed."""

    @property
    def silence_s(self) -> float:
        """So long it waits for a word of the other end."""

    def close(self) -> None:
        """Let go of it; reading and writing end."""


class PageService:
    """Fits the port `PageService`."""

    def __init__(self, link: ClosingLink, tell: Callable[[str], None]) -> None:
        """Begin, with nothing to serve yet.

        Args:
            link: The way to the keeper on the target; it is closed with this.
            tell: Told of how far it is.

        Raises:
            PeerFailed: the other end does not come up.
        """
        self._tell = tell
        self._link = link
        self._total = 0
        self._sent = 0
        self._failure: BaseException | None = None
        self._memory = TaskMemory()
        self._server = PageServer(link, self._memory, self._note)
        self._thread = threading.Thread(target=self._serve, name="pages", daemon=True)
        try:
            self._server.await_ready(link.silence_s)
        except BaseException:
            link.close()
            raise
        self._thread.start()

    @property
    def sent_bytes(self) -> ByteCount:
        """The bytes of the pages that were sent so far."""
        return ByteCount(self._sent)

    def serve(self, trees: Iterable[Tree], images: Sequence[str]) -> None:
        """Serve the memory of these trees, which stand still, from now on.

        Args:
            trees: The trees.
            images: The directories of their image sets.

        Raises:
            OsRefused: the memory of a process cannot be opened.
            ObjectCorrupt: an image set cannot be read.
        """
        self._total = PAGE_BYTES * sum(lazy_pages_in(Path(each)) for each in images)
        self._memory.open(trees)

    def follow(self, let_go: Callable[[], None]) -> None:
        """Call `let_go`, and return when all memory is there; nothing interrupts it.

        Raises:
            PagesLost: that cannot be any more: the copy on the target was ended, unless it had all.
            CkptError: what `let_go` raised.
        """
        with uninterrupted():
            let_go()
            while self._thread.is_alive():
                self._tell(f"its memory follows: {human_bytes(self._sent)} of {human_bytes(self._total)}")
                self._thread.join(_TELL_EVERY_S)
        if isinstance(self._failure, CkptError):
            raise self._failure
        if self._failure is not None:
            raise PagesLost(host=self._link.host, reason=str(self._failure)) from self._failure

    def close(self) -> None:
        """End it, and let go of everything; safe to repeat."""
        self._link.close()
        self._thread.join()
        self._memory.close()

    def _serve(self) -> None:
        try:
            self._server.serve()
        except Exception as error:  # noqa: BLE001 - told where it is waited for
            self._failure = error

    def _note(self, count: int) -> None:
        self._sent += count
