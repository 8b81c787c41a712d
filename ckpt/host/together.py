"""Processes that do the same, each for one member of a group, and wait for each other.

Rules:
- One write lets all go from a point: there is no moment in which some may go on and some may not, so that the death
  of who started them cannot part them there. Nobody is let go any more once one of them was told to give up.
- They are forked before anything of the work is begun, by who has no threads and does nothing meanwhile but wait. Each
  finds that another one failed at its next point; an interruption is passed on to all as SIGTERM.
- What they report passes through the codec, as everything that comes from another process.
Source: eventfd(2): a counter that nobody reads stays readable for all who poll it; pidfd_open(2); pipe(7), PIPE_BUF.
"""

from __future__ import annotations

import mmap
import os
import select
import signal
import struct
import sys
import traceback
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final, Generic, NoReturn, TypeVar

from ckpt.codec.packed import Reader, Refused, pack
from ckpt.codec.shapes import shape_of
from ckpt.errors import CkptError, GaveUp, Interrupted, Usage
from ckpt.host.signals import INTERRUPTIONS, uninterrupted
from ckpt.model.group import MEMBERS_MAX, MemberFailure
from ckpt.units import JobName, Pid

Report = TypeVar("Report")

_ARRIVAL: Final = struct.Struct("=HHq")
"""Who, where, and the number that is said: a pipe never mixes writes of so few bytes."""
_NUMBER: Final = struct.Struct("=q")
_OUTCOME_BYTES_MAX: Final = 64 << 20
_BUG_CODE: Final = 70


@dataclass(slots=True)
class EndsOfAll(Generic[Report]):
    """How it ended. Fits the port `Ends`."""

    reports: dict[JobName, Report] = field(default_factory=dict)
    failures: tuple[MemberFailure, ...] = ()
    said: dict[int, dict[int, int]] = field(default_factory=dict)
    let_go: set[int] = field(default_factory=set)

    def passed(self, point: IntEnum) -> bool:
        """Whether all have come to this point, and were let go from there."""
        return point in self.let_go

    def numbers(self, point: IntEnum) -> tuple[int, ...]:
        """What was said there."""
        return tuple(self.said.get(point, {}).values())


class ForkedTogether:
    """Forks a process for each member. Fits the port `Together`."""

    def run(
        self,
        members: tuple[JobName, ...],
        work: Callable[[JobName, PointsOfAll], Report],
        points: type[IntEnum],
        kind: type[Report],
    ) -> EndsOfAll[Report]:
        """Do the work for each member; returns when all processes have ended.

        Raises:
            Usage: too many members.
            Interrupted: the processes were told, and have ended, before all had come to the last point.
        """
        if len(members) > MEMBERS_MAX:
            raise Usage(problem=f"A group of {len(members)} jobs; {MEMBERS_MAX} is the most.")
        sys.stdout.flush()
        sys.stderr.flush()
        with ExitStack() as opened:
            run = _Run(opened, members, len(points), kind)
            run.follow(work)
        return run.ends


class PointsOfAll:
    """The way to the others. Fits the port `Meeting`."""

    def __init__(self, number: int, channels: _Channels) -> None:
        self._number = number
        self._channels = channels

    def arrive(self, point: IntEnum, said: int = 0) -> int:
        """Wait until all have come to this point; gives the greatest number that anyone said there.

        Raises:
            GaveUp: they will not all come.
        """
        channels = self._channels
        with suppress(BrokenPipeError):
            os.write(channels.arrivals, _ARRIVAL.pack(self._number, point, said))
        poll = select.poll()
        for fd in (channels.open[point], channels.broken, channels.life):
            poll.register(fd, select.POLLIN)
        if channels.open[point] not in {fd for fd, _ in poll.poll()}:
            raise GaveUp
        return int(_NUMBER.unpack_from(channels.numbers, point * _NUMBER.size)[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Channels:
    """What a member's process has of its parent: `life` ends with the parent, an eventfd of `open` lets go."""

    arrivals: int
    broken: int
    life: int
    open: tuple[int, ...]
    numbers: mmap.mmap


class _Run(Generic[Report]):
    """The parent's side."""

    def __init__(
        self, opened: ExitStack, members: tuple[JobName, ...], points: int, kind: type[Report]
    ) -> None:
        self._opened = opened
        self._members = members
        self._kind = kind
        self.ends: EndsOfAll[Report] = EndsOfAll()
        self._came, arrivals = self._pipe()
        life, self._life = self._pipe()
        self._channels = _Channels(
            arrivals=arrivals,
            broken=self._event(),
            life=life,
            open=tuple(self._event() for _ in range(points)),
            numbers=opened.enter_context(mmap.mmap(-1, max(1, points) * _NUMBER.size)),
        )
        self._outcomes: list[int] = []
        self._pids: list[Pid] = []
        self._living: dict[int, int] = {}
        self._is_broken = False
        os.set_blocking(self._came, False)

    def follow(self, work: Callable[[JobName, PointsOfAll], Report]) -> None:
        """Fork them, and let them go from point to point until all have ended."""
        try:
            for number in range(len(self._members)):
                self._start(number, work)
            self._follow()
        except BaseException as error:
            # What comes after the last point interrupts nothing that could be taken back.
            is_too_late = isinstance(error, Interrupted) and len(self._channels.open) - 1 in self.ends.let_go
            if not is_too_late:
                self._break()
                self._interrupt()
            self._follow()
            if not is_too_late:
                raise

    def _interrupt(self) -> None:
        for pidfd in self._living:
            # One of the two may be ignored; only the first one that comes has an effect.
            for number in (signal.SIGTERM, signal.SIGINT):
                with suppress(OSError):
                    signal.pidfd_send_signal(pidfd, number)

    def _start(self, number: int, work: Callable[[JobName, PointsOfAll], Report]) -> None:
        """Fork the process of one member; in it this does not return."""
        member = self._members[number]
        outcome = os.memfd_create("ckpt-member")
        self._opened.callback(os.close, outcome)
        self._outcomes.append(outcome)
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, INTERRUPTIONS)
        try:
            pid = os.fork()
            if pid == 0:
                try:
                    # What is open of the parent's own ends must not keep the others from seeing its end.
                    os.close(self._life)
                    os.close(self._came)
                    signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
                    meeting = PointsOfAll(number, self._channels)
                    _do(lambda: work(member, meeting), member, outcome, self._kind)
                finally:
                    os._exit(_BUG_CODE)
            self._pids.append(Pid(pid))
            pidfd = os.pidfd_open(pid)
            self._opened.callback(os.close, pidfd)
            self._living[pidfd] = number
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)

    def _follow(self) -> None:
        poll = select.poll()
        for fd in (self._came, *self._living):
            poll.register(fd, select.POLLIN)
        while self._living:
            ready = {fd for fd, _ in poll.poll()}
            with uninterrupted():  # what was read, or waited for, cannot be had again
                if self._came in ready:
                    self._note_arrivals()
                for pidfd in sorted(ready & self._living.keys()):
                    # Looked at after the process has ended: all that it said before is in the pipe.
                    self._note_arrivals()
                    poll.unregister(pidfd)
                    self._note_end(self._living.pop(pidfd))
                # Last: who died where the others wait for it must not have let them go.
                self._let_go()

    def _note_arrivals(self) -> None:
        content = b""
        with suppress(BlockingIOError):
            content = os.read(self._came, _ARRIVAL.size * 1024)
        for who, point, said in _ARRIVAL.iter_unpack(content):
            self.ends.said.setdefault(point, {}).setdefault(who, said)

    def _let_go(self) -> None:
        if self._is_broken:
            return
        for point, there in self.ends.said.items():
            if point not in self.ends.let_go and len(there) == len(self._members):
                self.ends.let_go.add(point)
                _NUMBER.pack_into(self._channels.numbers, point * _NUMBER.size, max(there.values()))
                os.eventfd_write(self._channels.open[point], 1)

    def _note_end(self, number: int) -> None:
        member = self._members[number]
        _, status = os.waitpid(self._pids[number], 0)
        outcome = _read(self._outcomes[number], self._kind, member, os.waitstatus_to_exitcode(status))
        if not isinstance(outcome, MemberFailure):
            self.ends.reports[member] = outcome
            return
        self._break()
        others = self.ends.failures
        is_first = outcome.slug != GaveUp.slug and all(each.slug == GaveUp.slug for each in others)
        self.ends.failures = (outcome, *others) if is_first else (*others, outcome)

    def _break(self) -> None:
        self._is_broken = True
        os.eventfd_write(self._channels.broken, 1)

    def _pipe(self) -> tuple[int, int]:
        ends = os.pipe()
        for fd in ends:
            self._opened.callback(os.close, fd)
        return ends

    def _event(self) -> int:
        fd = os.eventfd(0, os.EFD_CLOEXEC)
        self._opened.callback(os.close, fd)
        return fd


def _do(work: Callable[[], Report], member: JobName, outcome: int, kind: type[Report]) -> NoReturn:
    """Do the work in this process, which ends with it; what comes of it goes to the file `outcome`."""
    code = 0
    try:
        content = b"\1" + pack(shape_of(kind).write(work()))
    except CkptError as error:
        content = _failed(member, error.slug, error.message, error.advice, error.exit_code)
        code = error.exit_code
    except BaseException as error:  # noqa: BLE001 - it is told by who waits for this process
        traceback.print_exc()
        content = _failed(member, "bug", f"{type(error).__name__}: {error}", "Please report this.", _BUG_CODE)
        code = _BUG_CODE
    with open(outcome, "wb", closefd=False) as stream:
        stream.write(content)
    with suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def _failed(member: JobName, slug: str, message: str, hint: str, exit_code: int) -> bytes:
    failure = MemberFailure(
        member=member, slug=slug, message=message.replace("\0", ""), hint=hint, exit_code=exit_code
    )
    return b"\0" + pack(shape_of(MemberFailure).write(failure))


def _read(outcome: int, kind: type[Report], member: JobName, status: int) -> Report | MemberFailure:
    """What the process of this member has left, which ended with this status."""
    content = os.pread(outcome, _OUTCOME_BYTES_MAX, 0)
    try:
        reader = Reader(content[1:])
        if content[:1] == b"\1":
            report: Report = shape_of(kind).read(reader)
            return report
        if content[:1] == b"\0":
            failure: MemberFailure = shape_of(MemberFailure).read(reader)
            return failure
        reason = f"its process ended without a word ({_in_words(status)})"
    except Refused as refused:
        reason = f"what its process reported cannot be read: {refused.path} {refused.reason}"
    return MemberFailure(member=member, slug="ended", message=f"{reason}.", hint="", exit_code=_BUG_CODE)


def _in_words(status: int) -> str:
    return f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
