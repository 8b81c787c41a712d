"""The loop of whoever stands in for a job: relays its output, notes signals, and lets others take part.

Rules:
- One thread, one poll(2), nothing in it that blocks: a reader that does not read keeps no signal from being acted on.
- Signal handlers only note; what a signal means is decided between two polls, by the conductor.
- The job's files are read only when they grew.
- Who stops us with Ctrl-Z stops the job as well, and us after it; it goes on when we do.
Source: setpgid(2); kernel/signal.c, get_signal(), for groups that are orphaned.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final, Protocol

import click

from ckpt.cli import wiring
from ckpt.cli.relaying import Source
from ckpt.errors import CkptError, OsRefused
from ckpt.host import launch, linux
from ckpt.units import MILLISECOND, Nanoseconds

if TYPE_CHECKING:
    from ckpt.host.jobs import JobRecord

FORWARDED: Final = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGTSTP,
)

_IN_MODIFY: Final = 0x2
_SIGNALS_BYTES: Final = 4096


class Participant(Protocol):
    """Somebody who takes part in the loop: with descriptors to wait on, and a word when the job stands still."""

    def descriptors(self) -> Mapping[int, int]:
        """The descriptors to wait on, and for which events of poll(2); asked anew each turn."""

    def act(self, fd: int, events: int) -> None:
        """One of them is ready."""

    def at_freeze(self) -> None:
        """All tasks of the job stand still: note what must be of this instant."""

    def close(self) -> None:
        """The loop is over."""


class Conductor(Participant, Protocol):
    """Who decides: about signals, about time, and when the loop may end."""

    def heard(self, number: int) -> None:
        """This signal came to us."""

    def wake_at(self) -> Nanoseconds | None:
        """When turn() is due, by the stopwatch; None if only a descriptor can bring news."""

    def turn(self) -> None:
        """The loop has done what was ready."""

    def may_end(self) -> bool:
        """The job has ended: whether nothing of ours is under way."""


class Forwarding:
    """The conductor of a job that nobody checkpoints: every signal is the job's."""

    def __init__(self, record: JobRecord) -> None:
        """Forward to this job."""
        self._record = record

    def descriptors(self) -> Mapping[int, int]:
        """None of its own."""
        return {}

    def act(self, fd: int, events: int) -> None:
        """Nothing to do."""

    def at_freeze(self) -> None:
        """Nothing to note."""

    def close(self) -> None:
        """Nothing to close."""

    def heard(self, number: int) -> None:
        """Hand it on."""
        forward(self._record, number)

    def wake_at(self) -> Nanoseconds | None:
        """It needs no clock."""
        return None

    def turn(self) -> None:
        """Nothing to do."""

    def may_end(self) -> bool:
        """Nothing is ever under way."""
        return True


def forward(record: JobRecord, number: int) -> None:
    """Send a signal to the job; one that has ended needs none."""
    with contextlib.suppress(CkptError, OSError):
        launch.send_signal(record.root, number)


@contextlib.contextmanager
def signals_noted() -> Iterator[Noted]:
    """Note the signals that are to be forwarded instead of acting on them; one that our caller ignores stays ignored."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        for each in (ours, theirs):
            each.setblocking(False)
        former = {number: signal.getsignal(number) for number in FORWARDED}
        former_wakeup = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
        for number, handler in former.items():
            if handler is not signal.SIG_IGN:
                signal.signal(number, _note)
        try:
            yield Noted(ours)
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(former_wakeup)


def hold_signals() -> None:
    """Let the signals that are to be forwarded wait for run(): before it there is nobody who could act on them.

    No process may be started meanwhile, which would hold them, too.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)


def run(
    record: JobRecord,
    sources: Sequence[Source],
    conductor: Conductor,
    participants: Sequence[Participant] = (),
) -> None:
    """Serve the job until its main process has ended, and all that it wrote is relayed."""
    with signals_noted() as came, ExitStack() as opened:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
        root = launch.open_pidfd(record.root)
        if root is not None:
            opened.callback(os.close, root)
        watches = watch(sources, opened)
        taking_part = (conductor, *participants)
        for each in taking_part:
            opened.callback(each.close)
        for source in sources:
            opened.callback(source.close)
        ended = root is None
        while True:
            # Read after the watch began, and after the end: so nothing falls between.
            for source in sources:
                _push(source, record)
            conductor.turn()
            if ended and conductor.may_end() and not any(source.is_blocked for source in sources):
                return
            owners = {fd: (each, events) for each in taking_part for fd, events in each.descriptors().items()}
            poll = select.poll()
            for fd, (_, events) in owners.items():
                poll.register(fd, events)
            for fd in (came.descriptor, *watches, *(() if ended or root is None else (root,))):
                poll.register(fd, select.POLLIN)
            for source in sources:
                if source.is_blocked:
                    poll.register(source.out, select.POLLOUT)
            for fd, events in poll.poll(_timeout_ms(conductor.wake_at())):
                if fd == root:
                    ended = True
                elif fd in owners:
                    owners[fd][0].act(fd, events)
                elif fd in watches:
                    linux.inotify_drain(fd)
            for number in came():
                if ended and conductor.may_end():
                    return  # whoever is asked to end has nobody left to ask
                if number == signal.SIGTSTP:
                    _stop_together(record)
                else:
                    conductor.heard(number)


class Noted:
    """The signals that came, in order."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel

    @property
    def descriptor(self) -> int:
        """Readable when one came."""
        return self._channel.fileno()

    def __call__(self) -> tuple[int, ...]:
        """Take those that came."""
        with contextlib.suppress(BlockingIOError):
            return tuple(each for each in self._channel.recv(_SIGNALS_BYTES) if each in FORWARDED)
        return ()


def _note(_number: int, _frame: object) -> None:
    """The kernel's note, by set_wakeup_fd(), is all."""


def watch(sources: Sequence[Source], opened: ExitStack) -> frozenset[int]:
    """Descriptors that are readable when one of the sources grew; closed with `opened`."""
    watches = set()
    for source in sources:
        # A file that is not there (removed) cannot grow.
        with contextlib.suppress(OSError):
            watch = linux.inotify_open(source.path, _IN_MODIFY)
            opened.callback(os.close, watch)
            watches.add(watch)
    return frozenset(watches)


def _stop_together(record: JobRecord) -> None:
    """Stop the job and ourselves, until somebody has us go on."""
    forward(record, signal.SIGTSTP)
    noting = signal.signal(signal.SIGTSTP, signal.SIG_DFL)
    # As the bare command: nobody could let go on what is in an orphaned group, and so it does not stop.
    os.kill(os.getpid(), signal.SIGTSTP)
    signal.signal(signal.SIGTSTP, noting)
    forward(record, signal.SIGCONT)


def _push(source: Source, record: JobRecord) -> None:
    try:
        source.push()
    except BrokenPipeError:
        # What the job would have got at its next write, were the output its own.
        forward(record, signal.SIGPIPE)
    except OsRefused as error:
        # The job is not lost with its reader; who asked for its output is told once, and by the exit code.
        with contextlib.suppress(OSError):
            click.echo(f"ckpt: {error.message} {error.advice}", err=True)


def _timeout_ms(wake_at: Nanoseconds | None) -> float | None:
    if wake_at is None:
        return None
    # Rounded up: poll(2) cuts off what is less than a millisecond.
    return max(0, -(-(wake_at - wiring.stopwatch()) // MILLISECOND))
