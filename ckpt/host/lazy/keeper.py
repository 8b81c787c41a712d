"""The target's end of the way of the pages: brings them to the tasks that a restore has left without, until all are there.

Rules:
- A restore announces itself on the keeper's socket: each tree before CRIU restores it, and at last that the tasks run.
- Before that word a failure is the restore's affair. From it on the tasks end with the keeper (holder_process.py):
  a workload that lacks memory for ever must not run on.
- What a task waits for goes before the rest; of that so little is asked for at once that it is never waited for long.
- All userfaultfds are held until no process lacks anything: a task may touch memory that never had content, too.
- The keeper and the source tell each other that they live; who hears nothing for a while gives up.
"""

from __future__ import annotations

import os
import queue
import resource
import select
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Final

from ckpt.errors import CkptError, OsRefused, PeerFailed
from ckpt.host.lazy.announcing import Announced, read_announcement, say
from ckpt.host.lazy.hearing import TreeHooks, hear_tree
from ckpt.host.lazy.holder import Holder
from ckpt.host.lazy.memory import Family, FamilyHooks
from ckpt.host.lazy.places import listen_at
from ckpt.host.lazy.wire import Frame, Kind, Link, packed, read_frame, reason_in, say_failed
from ckpt.model.pages import PageRun
from ckpt.units import PAGE_BYTES, Pid

_ALIVE_IN_SILENCE: Final = 6
"""How often the keeper says that it is alive, in the time after which the source gives up."""

_SILENCE_MAX_S: Final = 600.0

_UNDER_WAY_MAX: Final = 3
"""Questions that may wait for their answers before more is asked for that nobody waits for."""

_WAITING_MAX: Final = 16
"""Frames of the source that may wait to be heard: what is said on is left in the link, and not in memory."""

_PIECE_BYTES_MIN: Final = 16 * PAGE_BYTES
_PIECE_BYTES_MAX: Final = 256 * PAGE_BYTES
"""What is asked for at once of what nobody waits for: little after each fault, and then more and more."""

_GIVEN_UP: Final = "the restore was given up"


class Keeper:
    """Serves one restore. What other threads hear, run() does."""

    def __init__(self, place: str, link: Link, *, silence_s: float) -> None:
        """Listen.

        Args:
            place: The path of the socket on which the restore announces itself.
            link: The way to the source.
            silence_s: So long either side waits for a word of the other, if the source names no other time.

        Raises:
            OsRefused: it cannot listen, or start what it needs.
        """
        self._place = place
        self._link = link
        self._silence_s = silence_s
        self._families: dict[tuple[Pid, Pid], Family] = {}
        self._faults: dict[int, Family] = {}
        self._announced: set[Pid] = set()
        self._ready: set[Pid] = set()
        self._runs = False
        self._under_way = 0
        self._piece_bytes = _PIECE_BYTES_MIN
        self._reason = ""
        self._heard_at = time.monotonic()
        self._room = threading.Semaphore(_WAITING_MAX)
        self._todo: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._poll = select.poll()
        self._poll.register(self._wake, select.POLLIN)
        self._holding = threading.Lock()
        # Every child that is forked meanwhile brings one more descriptor.
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        self._holder = Holder()
        try:
            self._listener = listen_at(place)
        except BaseException:
            self._holder.fail()
            raise

    def run(self) -> str:
        """Return when all pages are there, with ""; or, when that cannot be any more, with the reason."""
        for heard in (self._attend, self._read_link):
            threading.Thread(target=heard, name=heard.__name__, daemon=True).start()
        try:
            self._say(Frame(kind=Kind.READY))
            while not self._reason and not self._is_over():
                self._step()
        except PeerFailed as error:
            self._fail(error.reason)
        except OSError as error:
            self._fail(f"memory cannot be filled in: {error.strerror or error}")
        self._end()
        return self._reason

    def _is_over(self) -> bool:
        return (
            self._runs
            and self._ready >= self._announced
            and all(family.is_whole for family in self._families.values())
        )

    def _step(self) -> None:
        """Wait for something to do, and do it."""
        patience_s = self._silence_s / _ALIVE_IN_SILENCE
        told = self._poll.poll(patience_s * 1000)
        for fd, _ in told:
            if fd != self._wake:
                self._faults[fd].hear(fd)
        with suppress(BlockingIOError):
            os.eventfd_read(self._wake)
        with suppress(queue.Empty):
            while True:
                self._todo.get_nowait()()
        self._ask_for_more()
        if not told:
            self._say(Frame(kind=Kind.ALIVE))
            if time.monotonic() - self._heard_at > self._silence_s:
                self._fail(f"{self._link.host} said nothing for {self._silence_s:g} s")

    def _ask_for_more(self) -> None:
        """Ask for what nobody waits for yet."""
        for family in self._families.values():
            while family.root in self._ready and self._under_way < _UNDER_WAY_MAX:
                piece = family.next_piece(self._piece_bytes)
                if piece is None:
                    break
                self._ask(family, *piece)
                self._piece_bytes = min(self._piece_bytes + _PIECE_BYTES_MIN, _PIECE_BYTES_MAX)

    def _ask(self, family: Family, image: int, size: int) -> None:
        self._under_way += 1
        count = size // PAGE_BYTES
        self._say(Frame(kind=Kind.GET, root=family.root, pid=family.pid, address=image, count=count))

    def _ask_now(self, family: Family, image: int, size: int) -> None:
        """Ask for what a task waits for; what is asked for meanwhile must not hold up the next one."""
        self._piece_bytes = _PIECE_BYTES_MIN
        self._ask(family, image, size)

    def _say(self, frame: Frame) -> None:
        self._link.write(packed(frame))

    def _later(self, act: Callable[[], None]) -> None:
        """Let run() do this."""
        self._todo.put(act)
        os.eventfd_write(self._wake, 1)

    def _fail_later(self, reason: str) -> None:
        self._later(lambda: self._fail(reason))

    def _fail(self, reason: str) -> None:
        self._reason = self._reason or reason

    def _end(self) -> None:
        # The tasks end before their memory does.
        with suppress(OsRefused), self._holding:
            if self._reason:
                self._holder.fail()
            else:
                self._holder.done()
        for fd in self._faults:
            os.close(fd)
        with suppress(FileNotFoundError):
            os.unlink(self._place)
        self._listener.close()
        with suppress(PeerFailed):
            if self._reason:
                say_failed(self._link.write, self._reason)
            else:
                self._say(Frame(kind=Kind.DONE))

    def _keep(self, fd: int) -> None:
        """Watch this userfaultfd, which is a family's."""
        with self._holding:
            self._holder.keep(fd)

    def _attend(self) -> None:
        """Hear the one restore."""
        try:
            with self._listener.accept()[0] as restore:
                while (announced := read_announcement(restore)) is not None:
                    say(restore, self._follow(announced))
        except (OSError, ValueError) as error:
            self._fail_later(str(error))
        if not self._runs:
            self._fail_later(_GIVEN_UP)

    def _follow(self, announced: Announced) -> str:
        """Do what a restore announces; gives why not, or ""."""
        root = announced.root
        try:
            if not announced.cgroup:
                self._announced.add(root)
                hear_tree(
                    announced.images,
                    TreeHooks(
                        came=lambda pid, fd, lacks: self._came(root, pid, fd, lacks),
                        ready=lambda: self._later(lambda: self._ready.add(root)),
                        failed=self._fail_later,
                    ),
                )
                return ""
            with self._holding:
                if self._reason:
                    return self._reason
                self._holder.runs(announced.cgroup)
                self._runs = True
            self._later(lambda: None)
        except CkptError as error:
            return error.message
        return ""

    def _came(self, root: Pid, pid: Pid, fd: int, lacks: Iterable[PageRun]) -> None:
        self._keep(fd)
        self._later(lambda: self._adopt(root, pid, fd, lacks))

    def _adopt(self, root: Pid, pid: Pid, fd: int, lacks: Iterable[PageRun]) -> None:
        hooks = FamilyHooks(ask=self._ask_now, keep=lambda child: self._adopt_child(child, family))
        family = Family(root=root, pid=pid, fd=fd, lacks=lacks, hooks=hooks)
        self._families[root, pid] = family
        self._watch(fd, family)

    def _adopt_child(self, fd: int, family: Family) -> None:
        self._keep(fd)
        self._watch(fd, family)

    def _watch(self, fd: int, family: Family) -> None:
        self._faults[fd] = family
        self._poll.register(fd, select.POLLIN)

    def _read_link(self) -> None:
        """Hear the source."""
        while True:
            try:
                frame, content = read_frame(self._link)
            except PeerFailed as error:
                self._fail_later(error.reason)
                return
            self._heard_at = time.monotonic()
            self._room.acquire()
            self._later(self._doing(frame, content))
            if frame.kind not in (Kind.PAGES, Kind.ALIVE):
                return

    def _doing(self, frame: Frame, content: bytearray) -> Callable[[], None]:
        def do() -> None:
            self._room.release()
            match frame.kind:
                case Kind.PAGES:
                    self._take(frame, content)
                case Kind.FAILED:
                    self._fail(reason_in(content))
                case Kind.ALIVE if frame.count:
                    self._silence_s = min(frame.count / 1000, _SILENCE_MAX_S)
                case Kind.ALIVE:
                    pass
                case Kind.GET | Kind.READY | Kind.DONE:
                    self._fail(f"{self._link.host} said {frame.kind.name}")

        return do

    def _take(self, frame: Frame, content: bytearray) -> None:
        self._under_way -= 1
        family = self._families.get((frame.root, frame.pid))
        if family is None:
            self._fail(
                f"pages came of process {frame.pid} of the tree {frame.root}, for which nobody had asked"
            )
        else:
            family.fill(frame.address, content)
