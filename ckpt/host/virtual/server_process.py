"""The supervisor's two processes: the first answers the stat calls of restored tasks, the second stands by.

Started by server.py as `python -I -S -c …`; see there for the rules. The second is a fork of the first: it has the
same descriptors, and the page that the first one works in (slot.py). When the first dies, the second answers what
lies there, forks a new second, and goes on. So a change of what they hold (listeners, table) is passed on by
forking a new second.

Rules:
- A task waits in the kernel while it is answered; so nothing but looking at its file may take time. When that
  hangs (a file system that does not answer), the second ends the first, hands this one call to a process of its
  own, and goes on with the others.
- Both end when no task uses the filters any more, and remove the layer's directory.
- Only what `-I -S` offers is imported, and as little of it as possible.
"""

from __future__ import annotations

import gc
import os
import resource
import select
import signal
import socket
import sys
from contextlib import suppress
from typing import Final, NoReturn

from ckpt.host.virtual.answering import Answers
from ckpt.host.virtual.calls import stat_calls
from ckpt.host.virtual.conversation import ADD, DONE, FAILED, PING, RELOAD, STOP, Conversations
from ckpt.host.virtual.directory import LayerDirectory
from ckpt.host.virtual.kernel import FLAG_CONTINUE, NOTIFICATION, Response, wake_at_once
from ckpt.host.virtual.slot import Slot

NAME: Final = "ckpt-inodes"
"""What ps(1) shows of both."""

_TICK_MS: Final = 250
_STUCK_TICKS: Final = 2
_DEATH_MS: Final = 200
_HOME_AFTER_S: Final = 0.05
_FORK_AGAIN_S: Final = 0.5
_APART_TRIES: Final = 3
_END: Final = b"end"


def main(arguments: list[str]) -> NoReturn:
    """Serve one layer. Arguments: its directory, the number of the socket at which controllers connect."""
    if os.fork():
        os._exit(0)  # the controller needs not stay to reap
    for each in (
        signal.SIGINT,
        signal.SIGTERM,
        signal.SIGHUP,
        signal.SIGQUIT,
        signal.SIGPIPE,
        signal.SIGTSTP,
        signal.SIGCHLD,  # nobody waits for a fork that has ended
    ):
        signal.signal(each, signal.SIG_IGN)
    _show_as(NAME)
    with suppress(OSError, ValueError):
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    os.umask(0o077)
    calls = stat_calls()
    assert calls is not None, "the controller has looked"
    process = _Process(LayerDirectory(arguments[0]), socket.socket(fileno=int(arguments[1])), Answers(calls))
    # From here on the root may be the workload's: nothing of it must be imported.
    sys.path.clear()
    sys.meta_path.clear()
    gc.disable()
    process.run()


class _Process:
    """Either of the two: what both hold, and what each does."""

    def __init__(self, directory: LayerDirectory, control: socket.socket, answers: Answers) -> None:
        self._directory = directory
        self._control = control
        self._answers = answers
        self._answers.use(directory.read_table())
        self._response = Response()
        self._slot = Slot()
        self._listeners: set[int] = set()
        self._used = False
        self._generation = 0
        self._first = os.getpid()
        self._other: socket.socket | None = None
        self._servers = b""
        self._epoll = select.epoll()
        self._conversations = Conversations()
        self._apart: dict[int, tuple[int, bytes, int]] = {}

    def run(self) -> NoReturn:
        """Be the first process; in its forks, be the second and then the first."""
        hung = False
        while True:
            self._serve(hung=hung)
            hung = self._stand_by()

    # ------------------------------------------------------------------------------------ the first process

    def _serve(self, *, hung: bool) -> None:
        """Answer calls until the end of it all. Returns in a fork, which is the second process then."""
        self._first = os.getpid()
        if self._has_become_second():
            return
        if left := self._slot.left():
            if hung:
                self._answer_apart(*left, tries=_APART_TRIES)
            else:
                self._respond(*left)
        self._slot.clear()
        epoll = self._epoll
        epoll.register(self._control, select.EPOLLIN)
        for listener in self._listeners:
            epoll.register(listener, select.EPOLLIN)
        while True:
            events = epoll.poll(self._patience_s())
            if not events:
                self._answers.go_home()
                if self._other is None and self._has_become_second():
                    return
            for fd, event in events:
                if fd in self._listeners:
                    if event & select.EPOLLIN:
                        self._answer_next(fd)
                    else:
                        self._forget(fd)
                elif self._attend(fd):
                    return

    def _patience_s(self) -> float:
        """How long to wait for a call before something else is due; -1 if nothing is."""
        if self._other is None:
            return _FORK_AGAIN_S
        return _HOME_AFTER_S if self._answers.away else -1

    def _answer_next(self, listener: int) -> None:
        notification = self._slot.receive(listener)
        if notification is not None:
            self._respond(listener, notification)
            self._slot.clear()

    def _respond(self, listener: int, notification: bytes) -> None:
        number, task, _, call, _, _, *arguments = NOTIFICATION.unpack(notification)
        flags = FLAG_CONTINUE
        # Whatever is wrong with one call is its task's alone: its own call gives the kernel's answer.
        with suppress(Exception):
            found = self._answers.find(task, call, tuple(arguments))
            if (
                found is not None
                and self._response.is_valid(listener, number)
                and self._answers.give(task, *found)
            ):
                flags = 0
        self._response.send(listener, number, flags)

    def _answer_apart(self, listener: int, notification: bytes, *, tries: int) -> None:
        """Let a fork answer, which may wait as long as it must."""
        pid = -1
        if tries:
            with suppress(OSError):
                pid = os.fork()
        if pid < 0:
            self._response.send(listener, NOTIFICATION.unpack(notification)[0], FLAG_CONTINUE)
        elif pid == 0:
            self._let_go_of_conversations()
            self._control.close()
            self._respond(listener, notification)
            os._exit(0)
        else:
            # Gone already: it has answered, or the task went.
            with suppress(ProcessLookupError):
                pidfd = os.pidfd_open(pid)
                self._apart[pidfd] = (listener, notification, tries - 1)
                self._epoll.register(pidfd, select.EPOLLIN)

    def _attend(self, fd: int) -> bool:
        """See to what is no notification; True in a fork that is the second process now."""
        if fd == self._control.fileno():
            with suppress(OSError):
                accepted = self._conversations.accept(self._control)
                if accepted is not None:
                    self._epoll.register(accepted, select.EPOLLIN)
        elif fd in self._conversations:
            return self._converse(fd)
        elif fd in self._apart:
            listener, notification, tries = self._apart.pop(fd)
            self._epoll.unregister(fd)
            os.close(fd)
            if self._response.is_valid(listener, NOTIFICATION.unpack(notification)[0]):
                self._answer_apart(listener, notification, tries=tries)
        elif self._other is not None and fd == self._other.fileno():
            self._end_second()
            return self._has_become_second()
        return False

    def _converse(self, fd: int) -> bool:
        """Do what a controller asks for; True in a fork that is the second process now."""
        try:
            request, fds = self._conversations.hear(fd)
        except BlockingIOError:
            return False
        if not request:
            self._epoll.unregister(fd)
            self._conversations.end(fd)
            if not self._conversations and not self._used:
                self._end()
            return False
        try:
            if request == ADD:
                self._add(fds)
            elif request == RELOAD:
                self._answers.use(self._directory.read_table())
            if request in (ADD, RELOAD) and self._fork_second():
                return True
            answer = b"%s %s" % (DONE if request in (PING, ADD, RELOAD, STOP) else FAILED, self._servers)
        except (OSError, ValueError) as error:
            answer = b"%s %s" % (FAILED, str(error).encode())
        if request != ADD:
            for each in fds:
                os.close(each)
        self._conversations.say(fd, answer)
        if request == STOP:
            self._end()
        return False

    def _add(self, listeners: list[int]) -> None:
        for listener in listeners:
            wake_at_once(listener)
            self._listeners.add(listener)
            self._epoll.register(listener, select.EPOLLIN)
        self._used = True

    def _forget(self, listener: int) -> None:
        """No task has this filter any more."""
        self._epoll.unregister(listener)
        self._listeners.discard(listener)
        os.close(listener)
        if not self._listeners:
            self._end()

    def _end(self) -> NoReturn:
        self._end_second()
        self._directory.remove()
        os._exit(0)

    def _has_become_second(self) -> bool:
        """Start a second process, as soon as that is possible; True in it."""
        with suppress(OSError):
            return self._fork_second()
        return False

    def _fork_second(self) -> bool:
        """Start a second process that knows all that this one knows, and end the one before; True in the new one.

        Raises:
            OSError: it cannot be started; the one before stands by still.
        """
        ours, theirs = socket.socketpair()
        generation = self._generation + 1
        try:
            pid = os.fork()
        except OSError:
            ours.close()
            theirs.close()
            raise
        if pid == 0:
            self._let_go_of_conversations()
            ours.close()
            self._other = theirs
            self._generation = generation
            return True
        theirs.close()
        # Only the one whose number is here takes over: should this process die now, one does, not two.
        self._slot.generation = self._generation = generation
        self._end_second()
        self._other = ours
        self._epoll.register(ours, select.EPOLLIN)
        self._servers = b"%d %d" % (os.getpid(), pid)
        # A full disk must not end the service.
        with suppress(OSError):
            self._directory.write_servers(self._servers)
        return False

    def _end_second(self) -> None:
        if self._other is not None:
            self._epoll.unregister(self._other)
            with suppress(OSError):
                self._other.sendall(_END)
            self._other.close()
            self._other = None

    # ----------------------------------------------------------------------------------- the second process

    def _let_go_of_conversations(self) -> None:
        """In a fork: what only the first process has."""
        if self._answers.away:
            self._answers.go_home()
        self._epoll.close()
        self._epoll = select.epoll()
        self._conversations.end_all()
        for pidfd in self._apart:
            os.close(pidfd)
        self._apart = {}
        if self._other is not None:
            self._other.close()
            self._other = None

    def _stand_by(self) -> bool:
        """Return when this process must be the first: True if the one before hung in a call."""
        assert self._other is not None
        ends = select.poll()
        ends.register(self._other, select.POLLIN)
        waiting = select.poll()
        for listener in self._listeners:
            waiting.register(listener, select.POLLIN)
        before, ticks = None, 0
        while not ends.poll(_TICK_MS):
            now = self._slot.progress()
            calls = now.in_call or any(event & select.POLLIN for _, event in waiting.poll(0))
            ticks = ticks + 1 if calls and now == before else 0
            before = now
            if ticks >= _STUCK_TICKS and os.getppid() == self._first:
                os.kill(self._first, signal.SIGKILL)
                # It dies at once, unless the kernel cannot interrupt what it waits for.
                ends.poll(_DEATH_MS)
                self._become_first()
                return True
        with suppress(OSError):
            if self._other.recv(len(_END)) == _END:
                os._exit(0)
        self._become_first()
        return False

    def _become_first(self) -> None:
        assert self._other is not None
        if self._slot.generation != self._generation:
            os._exit(0)
        self._other.close()
        self._other = None


def _show_as(name: str) -> None:
    """Set what ps(1) shows as the name, and ask the OOM killer to take others first."""
    for path, value in (("/proc/self/comm", name), ("/proc/self/oom_score_adj", "-900")):
        # Lowering the score needs CAP_SYS_RESOURCE; without it these are as safe as any small process.
        with suppress(OSError), open(path, "w", encoding="ascii") as stream:
            stream.write(value)
