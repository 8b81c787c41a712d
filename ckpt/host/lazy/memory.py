"""The memory of the processes that came of one: the restored process, and the children that it forks meanwhile.

Rules:
- What is asked for is asked for once, for all of them: each lacks what its parent lacked when it was forked.
- Before memory is filled in, all that the kernel tells of the process is heard: what was given back, unmapped or moved
  in the meantime must not be filled in at its old place.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from ckpt.host.lazy import userfault
from ckpt.host.lazy.missing import Missing, Piece
from ckpt.host.lazy.userfault import Fault, Filled, Forked, Gone, Moved
from ckpt.model.pages import PageRun
from ckpt.units import PAGE_BYTES, Pid

_AROUND_BYTES: Final = 16 * PAGE_BYTES
"""Asked for at a fault: what follows the page is often wanted next."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FamilyHooks:
    """Whom a family tells.

    `ask` gets the family, and the image address and the number of bytes of what a task waits for; `keep` the
    userfaultfd of a child, which is to be watched from then on.
    """

    ask: Callable[[Family, int, int], None]
    keep: Callable[[int], None]


@dataclass(slots=True)
class _Process:
    fd: int
    missing: Missing


class Family:
    """A restored process, and its children."""

    def __init__(self, *, root: Pid, pid: Pid, fd: int, lacks: Iterable[PageRun], hooks: FamilyHooks) -> None:
        """Take over the userfaultfd of process `pid` of the tree `root`, which lacks these pages."""
        self._hooks = hooks
        self.root: Final = root
        self.pid: Final = pid
        pieces = (
            Piece(run.page * PAGE_BYTES, (run.page + run.count) * PAGE_BYTES, run.page * PAGE_BYTES)
            for run in lacks
        )
        self._processes = [_Process(fd, Missing(pieces))]
        self._asked: set[int] = set()

    @property
    def is_whole(self) -> bool:
        """Whether no process of it lacks anything."""
        return not any(process.missing for process in self._processes)

    def hear(self, fd: int) -> None:
        """Hear all that this userfaultfd, one of the family's, tells.

        Raises:
            OSError: it is unusable.
        """
        self._hear(next(each for each in self._processes if each.fd == fd))

    def next_piece(self, size_max: int) -> tuple[int, int] | None:
        """The image address and the size of what was not asked for yet, at most `size_max`; None if all was."""
        for process in self._processes:
            for piece in process.missing:
                image, end = piece.image, piece.image + piece.end - piece.start
                while image < end and image in self._asked:
                    image += PAGE_BYTES
                if image < end:
                    return image, self._ask(image, min(end, image + size_max))
        return None

    def fill(self, image: int, content: bytearray) -> None:
        """Give the content, from this image address on, to every process that lacks some of it.

        Raises:
            OSError: a userfaultfd is unusable.
        """
        self._asked.difference_update(range(image, image + len(content), PAGE_BYTES))
        source = ctypes.addressof(ctypes.c_char.from_buffer(content))
        for process in list(self._processes):
            for piece in process.missing.of_image(image, image + len(content)):
                self._copy(process, piece, source - image)

    def _hear(self, process: _Process) -> None:
        zeros: list[int] = []
        while True:
            while (event := userfault.read_event(process.fd)) is not None:
                match event:
                    case Fault(address=address):
                        if not self._is_coming(process, address):
                            zeros.append(address)
                    case Forked(fd=child):
                        os.set_inheritable(child, False)
                        self._hooks.keep(child)
                        self._processes.append(_Process(child, process.missing.copy()))
                    case Moved(start=start, to=to, size=size):
                        process.missing.move(start, to, size)
                    case Gone(start=start, end=end, stays=stays):
                        if stays:
                            userfault.leave_alone(process.fd, start, end)
                        process.missing.drop(start, end)
            zeros = [address for address in zeros if not self._zero(process, address)]
            if not zeros:
                return
            os.sched_yield()

    def _is_coming(self, process: _Process, address: int) -> bool:
        """Ask for the page that a task waits for, if it is one that is missing."""
        piece = process.missing.at(address)
        if piece is None:
            return False
        part = piece.part(address, address + _AROUND_BYTES)
        if part.image not in self._asked:
            self._hooks.ask(self, part.image, self._ask(part.image, part.image + part.end - part.start))
        return True

    @staticmethod
    def _zero(process: _Process, address: int) -> bool:
        """Whether nobody waits there any more for what never had content."""
        filled = userfault.zero(process.fd, address)
        if filled is Filled.THERE:
            userfault.wake(process.fd, address, PAGE_BYTES)
        return filled is not Filled.BUSY

    def _ask(self, image: int, end: int) -> int:
        """Note as asked for what was not yet, from `image` on without a gap; gives its size."""
        at = image
        while at < end and at not in self._asked:
            self._asked.add(at)
            at += PAGE_BYTES
        return at - image

    def _copy(self, process: _Process, piece: Piece, shift: int) -> None:
        todo = [piece]
        while todo:
            part = todo.pop()
            filled, count = userfault.copy(process.fd, part.start, part.image + shift, part.end - part.start)
            if count:
                process.missing.drop(part.start, part.start + count)
            rest = part.part(part.start + count, part.end)
            match filled:
                case Filled.DONE:
                    pass
                case Filled.THERE:
                    userfault.wake(process.fd, rest.start, PAGE_BYTES)
                    process.missing.drop(rest.start, rest.start + PAGE_BYTES)
                    todo += _from(rest, rest.start + PAGE_BYTES)
                case Filled.BUSY:
                    self._hear(process)
                    os.sched_yield()
                    todo += process.missing.of_image(rest.image, rest.image + rest.end - rest.start)
                case Filled.NO_AREA if rest.end - rest.start > PAGE_BYTES:
                    # More than one area, or some of them gone.
                    middle = rest.start + (rest.end - rest.start) // (2 * PAGE_BYTES) * PAGE_BYTES
                    todo += [rest.part(middle, rest.end), rest.part(rest.start, middle)]
                case Filled.NO_AREA:
                    process.missing.drop(rest.start, rest.end)
                case Filled.NO_PROCESS:
                    process.missing = Missing()
                    return


def _from(piece: Piece, start: int) -> list[Piece]:
    return [piece.part(start, piece.end)] if start < piece.end else []
