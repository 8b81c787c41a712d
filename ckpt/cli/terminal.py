"""A terminal of the job's own, joined to ours: keys go in here, what it shows comes by the job's log.

Rules:
- Our terminal is raw as long as the job is at it, and as it was on every way out; keys are the job's, also Ctrl-C and
  Ctrl-Z. While another process group is in front, it is left alone; SIGCONT makes us look again.
- The master is the shim's as well: when we die, the job keeps its terminal.
- Nothing is read from the master here: the shim does, and what it has taken stands in the log before it lets go of the
  lock on that.
Source: termios(3), ioctl_tty(2), pty(7).
"""

from __future__ import annotations

import atexit
import fcntl
import os
import select
import signal
import struct
import sys
import termios
import time
import tty
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

from ckpt.host import linux
from ckpt.host.outside import JobTerminal

_STDIN: Final = 0
_BLOCK_BYTES: Final = 1 << 12
_SIZE: Final = struct.Struct("HHHH")
_SIZE_DEFAULT: Final = (24, 80, 0, 0)
_DRAINING_S: Final = 1.0
"""How long a freeze waits at most until the log has all that the job wrote."""
_HEARING_S: Final = 0.5
"""How long keys wait at most for a job that is told of its size; it may have that signal blocked."""
_LOOK_AGAIN_S: Final = 0.001


class OwnTerminal:
    """A pseudo-terminal for a job, and our own side of it. Fits Participant."""

    def __init__(self) -> None:
        """Make it, of the size of ours; join() begins to use it."""
        self._master, self._slave = os.openpty()
        for fd in (self._master, self._slave):
            os.set_inheritable(fd, False)
        self._source = _STDIN if sys.stdin is not None else -1
        self._is_terminal = self._source >= 0 and os.isatty(self._source)
        self._former: list[Any] | None = None
        self._former_handlers: dict[int, object] = {}
        self._waiting = b""
        self._ends_line = True
        self._log = ""
        self._set_size()

    @property
    def given(self) -> JobTerminal:
        """What the job, and its shim, get."""
        return JobTerminal(master=self._master, slave=self._slave)

    def take_over(self, shim: int) -> bool:
        """Use the terminal of a job that runs, whose master this process has; false if it has none."""
        with suppress(OSError):
            for number in os.listdir(f"/proc/{shim}/fd"):
                if os.readlink(f"/proc/{shim}/fd/{number}").endswith("/ptmx"):
                    pidfd = os.pidfd_open(shim)
                    try:
                        master = linux.pidfd_getfd(pidfd, int(number))
                    finally:
                        os.close(pidfd)
                    os.close(self._master)
                    self._master = master
                    return True
        return False

    def join(self, log: str, *, anew: bool = False, reads: bool = True) -> None:
        """The job has it now: pass on keys and sizes.

        Args:
            log: Where what it shows is written to.
            anew: The job was restored: have it show itself again.
            reads: Whether our standard input is the job's.
        """
        os.close(self._slave)
        self._slave = -1
        self._log = log
        if not reads:
            self._source, self._is_terminal = -1, False
        if self._is_terminal:
            atexit.register(self._give_back)
            for number, act in (
                (signal.SIGWINCH, self._resized),
                (signal.SIGCONT, self._continued),
            ):
                self._former_handlers[number] = signal.signal(number, act)
            self._take()
        if anew:
            # A size that is another one is told to the job in any case: what shows something shows it anew.
            rows, columns, *pixels = self._size()
            _set_size(self._master, (rows, max(1, columns - 1), *pixels))
        self._set_size()
        if anew:
            self._await_heard()

    def descriptors(self) -> Mapping[int, int]:
        """Our input while nothing waits for the job's terminal, else that one."""
        if self._waiting:
            return {self._master: select.POLLOUT}
        if self._source < 0 or (self._is_terminal and not self._is_in_front()):
            return {}
        return {self._source: select.POLLIN}

    def act(self, fd: int, events: int) -> None:  # noqa: ARG002 - a participant's
        """Take keys in, or pass them on."""
        if self._master < 0:
            return
        if fd == self._source and not self._waiting:
            self._take_in()
        if self._waiting:
            self._pass_on()

    def at_freeze(self) -> None:
        """Return when the log has all that the job has written to the terminal."""
        deadline = time.monotonic() + _DRAINING_S
        with suppress(OSError):
            log = os.open(self._log, os.O_RDONLY | os.O_CLOEXEC)
            try:
                # Nothing tells that the shim has taken it; it is at it already.
                while time.monotonic() < deadline and not self._is_drained(log):
                    time.sleep(_LOOK_AGAIN_S)
            finally:
                os.close(log)

    def close(self) -> None:
        """Give our terminal back as it was, and let go of the job's."""
        self._give_back()
        atexit.unregister(self._give_back)
        for number, handler in self._former_handlers.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._former_handlers.clear()
        for fd in (self._master, self._slave):
            if fd >= 0:
                os.close(fd)
        self._master = self._slave = -1

    def _take_in(self) -> None:
        try:
            block = os.read(self._source, _BLOCK_BYTES)
        except BlockingIOError:
            return
        except OSError:
            block = b""
            if self._is_terminal and not self._is_in_front():
                return
        if block:
            self._waiting = block
            self._ends_line = block.endswith(b"\n")
            return
        self._source = -1
        if not self._is_terminal:
            # What a person types to say it; within a line it only ends that, so it is said again.
            key = termios.tcgetattr(self._master)[6][termios.VEOF]
            self._waiting = key if self._ends_line else key * 2

    def _pass_on(self) -> None:
        try:
            written = os.write(self._master, self._waiting)
        except BlockingIOError:
            return
        except OSError:  # EIO: hung up
            written = len(self._waiting)
        self._waiting = self._waiting[written:]

    def _take(self) -> None:
        """Make our terminal raw, if it is ours to do so."""
        if self._is_in_front():
            with suppress(termios.error):
                if self._former is None:
                    self._former = termios.tcgetattr(self._source)
                tty.setraw(self._source, termios.TCSADRAIN)

    def _give_back(self) -> None:
        if self._former is not None and self._is_in_front():
            with suppress(termios.error):
                termios.tcsetattr(_STDIN, termios.TCSADRAIN, self._former)
        self._former = None

    def _is_in_front(self) -> bool:
        try:
            return os.tcgetpgrp(_STDIN) == os.getpgrp()
        except OSError:
            return True  # not our controlling terminal: nobody else is at it

    def _continued(self, _number: int, _frame: object) -> None:
        # Whoever stopped us may have set the terminal to his liking.
        self._take()
        self._set_size()

    def _resized(self, _number: int, _frame: object) -> None:
        self._set_size()

    def _set_size(self) -> None:
        if self._master >= 0:
            _set_size(self._master, self._size())

    def _size(self) -> tuple[int, ...]:
        """Of the first of our streams that is a terminal."""
        for fd in (0, 1, 2):
            with suppress(OSError):
                size = _SIZE.unpack(fcntl.ioctl(fd, termios.TIOCGWINSZ, b"\0" * _SIZE.size))
                if size[0] and size[1]:
                    return size
        return _SIZE_DEFAULT

    def _await_heard(self) -> None:
        """Return when the job has got the signal of its size: less loses a key that comes at the same moment."""
        deadline = time.monotonic() + _HEARING_S
        with suppress(OSError, ValueError, IndexError):
            leader = os.tcgetpgrp(self._master)
            while time.monotonic() < deadline:
                with open(f"/proc/{leader}/status", encoding="ascii", errors="replace") as status:
                    pending = int(status.read().split("ShdPnd:")[1].split()[0], 16)
                if not pending >> (signal.SIGWINCH - 1) & 1:
                    return
                time.sleep(_LOOK_AGAIN_S)

    def _is_drained(self, log: int) -> bool:
        if _has_output(self._master):
            return False
        # The shim takes under this lock: if it has it, it may have taken the last piece, and not written it yet.
        fcntl.flock(log, fcntl.LOCK_SH)
        fcntl.flock(log, fcntl.LOCK_UN)
        return not _has_output(self._master)


def _has_output(master: int) -> bool:
    poll = select.poll()
    poll.register(master, select.POLLIN)
    return any(events & select.POLLIN for _, events in poll.poll(0))


def _set_size(master: int, size: tuple[int, ...]) -> None:
    with suppress(OSError):
        fcntl.ioctl(master, termios.TIOCSWINSZ, _SIZE.pack(*size))
