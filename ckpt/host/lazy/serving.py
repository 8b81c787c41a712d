"""The end of the way of the pages that has them: answers until the keeper has all.

Rule: one thread serves; serve() ends only with the word of the keeper, or with an error.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from ckpt.errors import CkptError, PagesLost, PeerFailed
from ckpt.host.lazy.wire import Frame, Kind, Link, packed, read_frame, reason_in, say_failed
from ckpt.units import PAGE_BYTES, Pid


class PageSource(Protocol):
    """Who has the memory of processes."""

    def read(self, root: Pid, pid: Pid, address: int, into: memoryview) -> None:
        """Fill this with what process `pid`, as its own tree numbers it, of the tree `root` had from this address on.

        Raises:
            OSError: it cannot be read.
            KeyError: nothing is known of the process.
            CkptError: what is to be told as it is.
        """


class PageServer:
    """Serves memory out of a source."""

    def __init__(self, link: Link, source: PageSource, moved: Callable[[int], None]) -> None:
        """Serve this source; `moved` is told of bytes that went out."""
        self._link = link
        self._source = source
        self._moved = moved

    def await_ready(self, silence_s: float) -> None:
        """Return when the other end can take what it will be told of; either side gives up after such a silence.

        Raises:
            PeerFailed: it does not come up.
        """
        frame, content = read_frame(self._link)
        if frame.kind is not Kind.READY:
            raise PeerFailed(
                host=self._link.host, reason=reason_in(content) or f"it began with {frame.kind.name}"
            )
        self._link.write(packed(Frame(kind=Kind.ALIVE, count=round(silence_s * 1000))))

    def serve(self) -> None:
        """Answer until all pages are there.

        Raises:
            PagesLost: the link broke, or the other end gave up, before that.
            CkptError: what the source raised; the other end was told.
        """
        try:
            while True:
                frame, content = read_frame(self._link)
                match frame.kind:
                    case Kind.GET:
                        self._send(frame)
                    case Kind.ALIVE:
                        self._link.write(packed(frame))
                    case Kind.DONE:
                        return
                    case Kind.FAILED:
                        raise PagesLost(host=self._link.host, reason=reason_in(content))
                    case Kind.PAGES | Kind.READY:
                        raise PagesLost(host=self._link.host, reason=f"it said {frame.kind.name}")
        except PeerFailed as error:
            raise PagesLost(host=self._link.host, reason=error.reason) from error

    def _send(self, frame: Frame) -> None:
        head = packed(
            Frame(kind=Kind.PAGES, root=frame.root, pid=frame.pid, address=frame.address, count=frame.count)
        )
        content = memoryview(bytearray(len(head) + frame.count * PAGE_BYTES))
        content[: len(head)] = head
        try:
            self._source.read(frame.root, frame.pid, frame.address, content[len(head) :])
        except (OSError, KeyError) as error:
            reason = f"page {frame.address:#x} of process {frame.pid} cannot be read: {error}"
            say_failed(self._link.write, reason)
            raise PagesLost(host=self._link.host, reason=reason) from error
        except CkptError as error:
            say_failed(self._link.write, error.message)
            raise
        self._link.write(content)
        self._moved(frame.count * PAGE_BYTES)
