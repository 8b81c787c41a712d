"""The source's end of the way of the pages: answers out of the memory of tasks that stand still.

Rules:
- The tasks are frozen, or stopped by CRIU, as long as this serves: what is read is what the images lack.
- Memory is read by /proc/PID/mem, which also shows what a task itself may not read.
- One thread serves; serve() ends only with the word of the keeper, or with an error.
Source: proc_pid_mem(5).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Final

from ckpt.errors import OsRefused, PagesLost, PeerFailed
from ckpt.host.lazy.wire import Frame, Kind, Link, packed, read_frame, reason_in, say_failed
from ckpt.model.workload import Tree
from ckpt.units import PAGE_BYTES, Pid


class PageServer:
    """Serves the memory of trees that stand still."""

    def __init__(self, link: Link, moved: Callable[[int], None]) -> None:
        """Have nothing to serve yet; `moved` is told of bytes that went out."""
        self._link = link
        self._moved = moved
        self._memory: Final[dict[tuple[Pid, Pid], int]] = {}

    def open(self, trees: Iterable[Tree]) -> None:
        """Serve these trees, too; called by another thread, before the other end knows of them.

        Raises:
            OsRefused: the memory of a process cannot be opened.
        """
        for tree in trees:
            for process in tree.processes:
                path = f"/proc/{process.pid}/mem"
                try:
                    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                except ProcessLookupError:  # a zombie: it has no memory
                    continue
                except OSError as error:
                    raise OsRefused(
                        operation="read", subject=path, reason=error.strerror or str(error)
                    ) from error
                self._memory[tree.root, process.pid_inside] = fd

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

    def close(self) -> None:
        """Let go of the memory; safe to repeat."""
        for fd in self._memory.values():
            os.close(fd)
        self._memory.clear()

    def _send(self, frame: Frame) -> None:
        head = packed(
            Frame(kind=Kind.PAGES, root=frame.root, pid=frame.pid, address=frame.address, count=frame.count)
        )
        content = memoryview(bytearray(len(head) + frame.count * PAGE_BYTES))
        content[: len(head)] = head
        try:
            self._read(frame, content[len(head) :])
        except (OSError, KeyError) as error:
            reason = f"page {frame.address:#x} of process {frame.pid} cannot be read: {error}"
            say_failed(self._link.write, reason)
            raise PagesLost(host=self._link.host, reason=reason) from error
        self._link.write(content)
        self._moved(frame.count * PAGE_BYTES)

    def _read(self, frame: Frame, into: memoryview) -> None:
        memory = self._memory[frame.root, frame.pid]
        done = 0
        while done < len(into):
            count = os.preadv(memory, [into[done:]], frame.address + done)
            if not count:
                raise OSError(0, "there is no more")
            done += count
