"""What a job in the foreground reads: our own standard input, so that a dump and a restore lose nothing of it.

Rules:
- A file is given to the job itself: its position is of the job's memory. Everything else that can end or block is
  given through a pipe of ours, since the job may outlive it, or be restored beside another one.
- At a freeze the bytes are counted that the job has read, which is what was pumped but for what is in the pipe: CRIU
  does not restore what is in an inherited pipe. After a restore that many of the same input are left out.
- In a pipe that has its end already, nobody outside has a part: CRIU restores it with what is in it, and all that was
  pumped counts as read once it is empty.
- That the end of the input was passed on is written down before it is: a job that sees it without that has lost us.
  What is fed by a terminal sees an end when that is gone, as the bare command would.
- Another process group's terminal is not read: we would be stopped, and could relay nothing. SIGCONT makes us look again.
Source: criu/pipes.c, open_pipe() and dump_one_pipe_data(); pipe(7); credentials(7); tcgetpgrp(3).
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import stat
import struct
import sys
import termios
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Final

from ckpt.host.feeding import Mark, ourselves, remove_mark, write_mark
from ckpt.host.launch import Stdio
from ckpt.host.starting import STDIN_POSITION

if TYPE_CHECKING:
    from ckpt.host.jobs import JobRecord, JobRegistry
    from ckpt.host.process_table import ProcessRef
    from ckpt.units import JobName

_STDIN: Final = 0
_BLOCK_BYTES: Final = 1 << 16
_POSITION_DIGITS: Final = 20
"""All positions are written alike long, so that one is replaced as a whole."""
_UNKNOWN: Final = -1


class StandardInput:
    """Our standard input as a job's. Fits Participant."""

    def __init__(self, *, source: int, is_terminal: bool) -> None:
        self._source = source
        self._is_terminal = is_terminal
        self._ours, self._jobs = -1, -1
        self._wanted_inode = 0
        self._waiting = b""
        self._skip = 0
        self._pumped = 0
        self._has_all_read = False
        self._path = ""
        self._registry: JobRegistry | None = None
        self._record: JobRecord | None = None
        self._has_moved = False
        self._warn: Callable[[str], None] = _be_silent
        self._former_handlers: dict[int, object] = {}

    @classmethod
    def for_start(cls, held: ExitStack) -> tuple[Stdio, StandardInput | None]:
        """What a new job gets as its standard input, open as long as `held`, and who feeds that, if it needs feeding."""
        if sys.stdin is None:  # closed by our caller: the number may be another file's by now
            return Stdio(path=os.devnull), None
        status = os.fstat(_STDIN)
        is_terminal = os.isatty(_STDIN)
        is_file = stat.S_ISREG(status.st_mode) or (stat.S_ISCHR(status.st_mode) and not is_terminal)
        if is_file and _is_at_its_path(status):
            # Under another number: the shim's own standard input is another one.
            given = os.dup(_STDIN)
            held.callback(os.close, given)
            return Stdio.inherit(given), None
        fed = cls(source=_STDIN, is_terminal=is_terminal)
        held.callback(fed.close)
        return Stdio.inherit(fed.make_pipe()), fed

    @classmethod
    def for_restore(cls) -> StandardInput:
        """Who feeds a restored job, if that had a pipe of ours; a job that had none takes nothing of it."""
        source = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC) if sys.stdin is None else _STDIN
        fed = cls(source=source, is_terminal=os.isatty(source))
        fed.make_pipe()
        return fed

    @property
    def read_end(self) -> int:
        """The job's end of the pipe, until it is handed over."""
        return self._jobs

    @property
    def feeder(self) -> ProcessRef | None:
        """This process, if the job is at a loss when it is gone."""
        return None if self._is_terminal else ourselves()

    def make_pipe(self) -> int:
        """Make the pipe; gives the job's end."""
        self._jobs, self._ours = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._ours, False)
        self._wanted_inode = os.fstat(self._jobs).st_ino
        return self._jobs

    def started(self, registry: JobRegistry, record: JobRecord) -> None:
        """A new job has the other end: feed it from the beginning."""
        self._begin(registry, record)
        self._write_position(0)
        self._mark(Mark.UNMOVED)

    def restored(self, registry: JobRegistry, record: JobRecord, warn: Callable[[str], None]) -> None:
        """A restored job has the other end, or does not want it: go on where it was at its checkpoint.

        Args:
            registry: The jobs.
            record: Which one.
            warn: Told, in a sentence, what cannot be as it was.
        """
        self._begin(registry, record)
        self._warn = warn
        if _is_broken(self._ours):
            self._end()
            return
        self._pumped = _read_position(self._path)
        if self._is_terminal:
            self._pumped = max(0, self._pumped)
        elif self._pumped < 0:
            self._pumped = 0
            warn(
                f"the checkpoint of {record.name} does not say how much it had read of its standard input, as a supervisor took "
                "it not: it gets no more input"
            )
            self._end()
        else:
            self._skip = self._pumped
            self._mark(Mark.UNMOVED)

    def descriptors(self) -> Mapping[int, int]:
        """The input while nothing waits for the pipe; the pipe always, since the job may close it."""
        if self._ours < 0:
            return {}
        if self._waiting:
            return {self._ours: select.POLLOUT}
        if self._source < 0 or (self._is_terminal and not _is_foreground(self._source)):
            return {self._ours: 0}
        return {self._ours: 0, self._source: select.POLLIN}

    def act(self, fd: int, events: int) -> None:
        """Take in, or pass on, what there is."""
        if self._ours < 0:
            return
        if fd == self._ours:
            if events & (select.POLLERR | select.POLLNVAL):
                self._end()
            elif self._waiting:
                self._pass_on()
        elif not self._waiting:
            self._take_in()

    def at_freeze(self) -> None:
        """Write down how much the job has read."""
        if self._path and not self._has_all_read:
            left = _bytes_in(self._ours) if self._ours >= 0 else self._left_without_us()
            self._write_position(self._pumped - left)
            self._has_all_read = self._ours < 0 and left == 0

    def close(self) -> None:
        """Stop feeding: the job is at the end of its input."""
        for fd in (self._ours, self._jobs):
            if fd >= 0:
                os.close(fd)
        self._ours = self._jobs = -1
        for number, handler in self._former_handlers.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._former_handlers.clear()

    def _begin(self, registry: JobRegistry, record: JobRecord) -> None:
        if self._jobs >= 0:
            os.close(self._jobs)
        self._jobs = -1
        self._path = f"{registry.directory(record.name)}/{STDIN_POSITION}"
        self._registry, self._record = registry, record
        if self._is_terminal and not self._former_handlers:
            # SIGTTIN ignored, a read in the background fails instead of stopping us; SIGCONT wakes the loop.
            self._former_handlers = {
                signal.SIGTTIN: signal.signal(signal.SIGTTIN, signal.SIG_IGN),
                signal.SIGCONT: signal.signal(signal.SIGCONT, lambda *_: None),
            }

    def _take_in(self) -> None:
        try:
            block = os.read(self._source, _BLOCK_BYTES)
        except BlockingIOError:
            return
        except OSError:
            # EIO: the terminal is gone, or has another process group in front since we looked.
            if self._is_terminal and not _is_foreground(self._source):
                return
            block = b""
        if not block:
            self._end_of_input()
            return
        left_out = min(self._skip, len(block))
        self._skip -= left_out
        self._waiting = block[left_out:]
        if self._waiting:
            self._pass_on()

    def _pass_on(self) -> None:
        if not self._has_moved:
            self._note_that_it_moves()
        try:
            written = os.write(self._ours, self._waiting)
        except BlockingIOError:
            return
        except BrokenPipeError:
            self._end()
            return
        self._pumped += written
        self._waiting = self._waiting[written:]

    def _end_of_input(self) -> None:
        if self._skip:
            self._warn(
                f"the standard input ended after {self._pumped - self._skip} bytes, of which the job had read "
                f"{self._pumped} before: it is another one, and the job is at its end"
            )
        self._skip = 0
        self._mark(Mark.COMPLETE)
        os.close(self._ours)
        self._ours = -1

    def _end(self) -> None:
        """The job reads no more: let go of the input as well, so that whoever writes to it learns of it."""
        self._waiting = b""
        self._has_all_read = True
        self._mark(Mark.COMPLETE)
        if self._ours >= 0:
            os.close(self._ours)
            self._ours = -1
        if self._source == _STDIN and not self._is_terminal:
            null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
            os.dup2(null, _STDIN)
            os.close(null)
        self._source = -1

    def _note_that_it_moves(self) -> None:
        """From now on the position is known at a freeze alone."""
        assert self._registry is not None
        assert self._record is not None
        remove_mark(self._registry, self._record, Mark.UNMOVED)
        # Somebody may just be saving what is written there.
        self._write_position(_UNKNOWN)
        self._has_moved = True

    def _mark(self, mark: Mark) -> None:
        """Write down what is so from now on, of a job that is at a loss without us."""
        if self._registry is None or self._record is None or self._record.feeder is None:
            return
        # Without the mark less counts of what the job does, and nothing wrong.
        with suppress(OSError):
            write_mark(self._registry, self._record, mark)

    def _left_without_us(self) -> int:
        """What is in the pipe whose end we have closed: of those who read it, one is asked."""
        for pid in filter(str.isdecimal, os.listdir("/proc")):
            place = f"/proc/{pid}/fd"
            with suppress(OSError):
                for number in os.listdir(place):
                    if os.stat(f"{place}/{number}").st_ino == self._wanted_inode and os.readlink(
                        f"{place}/{number}"
                    ).startswith("pipe:"):
                        fd = os.open(f"{place}/{number}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
                        try:
                            return _bytes_in(fd)
                        finally:
                            os.close(fd)
        return 0

    def _write_position(self, position: int) -> None:
        fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.pwrite(fd, f"{position:0{_POSITION_DIGITS}}\n".encode(), 0)
        finally:
            os.close(fd)


def forget_position(registry: JobRegistry, job: JobName) -> None:
    """Before a restore: what is found afterwards is the checkpoint's own."""
    with suppress(FileNotFoundError):
        os.unlink(f"{registry.directory(job)}/{STDIN_POSITION}")


def _read_position(path: str) -> int:
    """What is written there; -1 if nothing that can be read."""
    try:
        with open(path, encoding="ascii", errors="replace") as stream:
            text = stream.read(_POSITION_DIGITS + 2).strip()
    except OSError:
        return -1
    return int(text) if text.isdecimal() else -1


def _is_at_its_path(status: os.stat_result) -> bool:
    """Whether the file can be opened again by its path: it was not removed, and is visible here."""
    try:
        found = os.stat(os.readlink(f"/proc/self/fd/{_STDIN}"))
    except OSError:
        return False
    return (found.st_dev, found.st_ino) == (status.st_dev, status.st_ino)


def _is_foreground(terminal: int) -> bool:
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        # Not our controlling terminal: nobody's job control is in the way.
        return True


def _is_broken(pipe: int) -> bool:
    poll = select.poll()
    poll.register(pipe, 0)
    return any(events & select.POLLERR for _, events in poll.poll(0))


def _bytes_in(pipe: int) -> int:
    (count,) = struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, b"\0" * 4))
    return int(count)


def _be_silent(_sentence: str) -> None:
    """Nobody listens yet."""
