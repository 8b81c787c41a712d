"""A varlink service on a socket of this host, whose calls may take long: each is worked on by a process of its own.

    client ──► socket ──► serve() ──► Service.begin ──► an answer at once, or a Task: a forked process
                             ▲                                                │
                             └── its answer, when it has ended ◄──────────────┘

Rules:
- Only the users that the service names may talk; who it is, the kernel says.
- One thread, and nothing that blocks: a client that says nothing, or takes nothing, holds nobody up.
- The answers of a connection come in the order of its calls.
- A task goes on when its client has gone: what it began is worth having. A server that is told to stop takes no
  more calls, and ends when its tasks have.
Source: varlink.org; unix(7) "SO_PEERCRED"; systemd, src/libsystemd/sd-varlink/sd-varlink.c.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import socket
import struct
import traceback
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from ckpt.host.guard.varlink import CallReader, Garbled, VarlinkAnswer, VarlinkCall, encode_answer

CONNECTIONS_MAX: Final = 32

_CREDENTIALS: Final = struct.Struct("3i")
_READ_BYTES: Final = 16 * 1024
_ANSWER_BYTES_MAX: Final = 64 * 1024


class Work(Protocol):
    """What a call asks for that takes long."""

    def __call__(self) -> VarlinkAnswer:
        """Do it, in a process of its own."""


class Service(Protocol):
    """What is served."""

    @property
    def users(self) -> frozenset[int]:
        """The user ids that may call."""

    def begin(self, call: VarlinkCall) -> VarlinkAnswer | Work:
        """The answer to the call, or the work that gives it."""


def serve(listener: socket.socket, service: Service, *, told: Callable[[str], None]) -> None:
    """Answer all who connect, until SIGTERM or SIGINT; then when the last task has ended.

    Args:
        listener: A listening stream socket of the family AF_UNIX; it is left open.
        service: What is served.
        told: Is told what went wrong with a client, in a sentence.
    """
    with contextlib.closing(_Server(listener, service, told)) as server:
        server.run()


@dataclass(slots=True, eq=False)
class _Client:
    """One connection: what is still to be worked on, and what is still to be written."""

    connection: socket.socket
    reader: CallReader = field(default_factory=CallReader)
    waiting: deque[VarlinkCall] = field(default_factory=deque)
    unsent: bytearray = field(default_factory=bytearray)
    is_busy: bool = False
    has_ended: bool = False


@dataclass(slots=True, eq=False)
class _Task:
    """A process that works on a call, and the client who waits for it."""

    pipe: int
    pid: int
    call: VarlinkCall
    client: _Client
    said: bytearray = field(default_factory=bytearray)


class _Server:
    def __init__(self, listener: socket.socket, service: Service, told: Callable[[str], None]) -> None:
        self._listener = listener
        self._service = service
        self._told = told
        self._selector = selectors.DefaultSelector()
        self._clients: set[_Client] = set()
        self._tasks: set[_Task] = set()
        self._stops = False
        self._wake_out, self._wake_in = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._former: dict[int, Any] = {}

    def run(self) -> None:
        """Serve until a signal says stop."""
        for number in (signal.SIGTERM, signal.SIGINT):
            self._former[number] = signal.signal(number, self._stop)
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        self._selector.register(self._wake_out, selectors.EVENT_READ, self._wake)
        while not (self._stops and not self._tasks):
            for key, events in self._selector.select():
                key.data(events)

    def close(self) -> None:
        """Let go of everything but the listener and the tasks."""
        for number, handler in self._former.items():
            signal.signal(number, handler)
        for client in list(self._clients):
            self._drop(client)
        self._selector.close()
        os.close(self._wake_out)
        os.close(self._wake_in)

    def _stop(self, _number: int, _frame: object) -> None:
        with contextlib.suppress(BlockingIOError):
            os.write(self._wake_in, b"\0")

    def _wake(self, _events: int) -> None:
        os.read(self._wake_out, 16)
        if not self._stops:
            self._stops = True
            self._selector.unregister(self._listener)

    def _accept(self, _events: int) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:  # the client was gone before, or there are no descriptors left
            return
        connection.setblocking(False)
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        pid, user, _group = _CREDENTIALS.unpack(credentials)
        if user not in self._service.users:
            self._told(f"Process {pid} of user {user} may not call; it was refused.")
            connection.close()
        elif len(self._clients) >= CONNECTIONS_MAX:
            self._told(f"There are {CONNECTIONS_MAX} connections already; process {pid} was refused.")
            connection.close()
        else:
            client = _Client(connection)
            self._clients.add(client)
            self._selector.register(
                connection, selectors.EVENT_READ, lambda events: self._move(client, events)
            )

    def _move(self, client: _Client, events: int) -> None:
        try:
            if events & selectors.EVENT_READ:
                content = client.connection.recv(_READ_BYTES)
                client.has_ended = not content
                client.waiting.extend(client.reader.feed(content))
        except BlockingIOError:
            pass
        except (OSError, Garbled) as error:
            if isinstance(error, Garbled):
                self._told(f"A client sent {error}; its connection was closed.")
            self._drop(client)
            return
        self._go_on(client)

    def _go_on(self, client: _Client) -> None:
        """Work on the client's next calls, and watch it for what can happen next."""
        while client.waiting and not client.is_busy and not self._stops:
            call = client.waiting.popleft()
            found = self._service.begin(call)
            if isinstance(found, VarlinkAnswer):
                self._answer(client, call, found)
            else:
                self._start(client, call, found)
        try:
            while client.unsent:
                del client.unsent[: client.connection.send(client.unsent)]
        except BlockingIOError:
            pass
        except OSError:  # it has gone
            self._drop(client)
            return
        if client.has_ended and not client.is_busy and not client.unsent:
            self._drop(client)
        elif client in self._clients:
            # A client that does not take its answers is not read from; nor one whose call is worked on, which
            # bounds what it can leave here. Its end is seen when its answer is written.
            wanted = selectors.EVENT_WRITE if client.unsent else 0
            if not client.unsent and not client.is_busy and not client.has_ended:
                wanted |= selectors.EVENT_READ
            self._watch(client, wanted)

    def _watch(self, client: _Client, wanted: int) -> None:
        known = self._selector.get_map().get(client.connection)
        if known is None and wanted:
            self._selector.register(client.connection, wanted, lambda events: self._move(client, events))
        elif known is not None and not wanted:
            self._selector.unregister(client.connection)
        elif known is not None and known.events != wanted:
            self._selector.modify(client.connection, wanted, known.data)

    def _answer(self, client: _Client, call: VarlinkCall, answer: VarlinkAnswer) -> None:
        if not call.oneway:
            client.unsent += encode_answer(answer)

    def _drop(self, client: _Client) -> None:
        if client in self._clients:
            self._clients.remove(client)
            with contextlib.suppress(KeyError):
                self._selector.unregister(client.connection)
            client.connection.close()

    def _start(self, client: _Client, call: VarlinkCall, work: Work) -> None:
        out, into = os.pipe2(os.O_CLOEXEC)
        pid = os.fork()
        if pid == 0:
            self._be_a_task(work, into)
        os.close(into)
        os.set_blocking(out, False)
        task = _Task(pipe=out, pid=pid, call=call, client=client)
        client.is_busy = True
        self._tasks.add(task)
        self._selector.register(out, selectors.EVENT_READ, lambda _events: self._hear(task))

    def _be_a_task(self, work: Work, into: int) -> None:
        """The forked process: it has nothing of the server but the pipe, and ends here."""
        code = 1
        try:
            for number, handler in self._former.items():
                signal.signal(number, handler)
            self._listener.close()
            for client in self._clients:
                client.connection.close()
            answer = work()
            said = json.dumps({"error": answer.error, "parameters": dict(answer.parameters)}).encode()
            os.write(into, said[:_ANSWER_BYTES_MAX])
            code = 0
        except Exception:  # noqa: BLE001 - nobody above this but the copy of the server
            traceback.print_exc()
        finally:
            os._exit(code)

    def _hear(self, task: _Task) -> None:
        try:
            content = os.read(task.pipe, _READ_BYTES)
        except BlockingIOError:
            return
        if content and len(task.said) < _ANSWER_BYTES_MAX:
            task.said += content
            return
        self._selector.unregister(task.pipe)
        os.close(task.pipe)
        os.waitpid(task.pid, 0)
        self._tasks.remove(task)
        task.client.is_busy = False
        if task.client in self._clients:
            self._answer(task.client, task.call, _answer_of(task.said))
            self._go_on(task.client)


def _answer_of(said: bytes | bytearray) -> VarlinkAnswer:
    try:
        document: Mapping[str, Any] = json.loads(said)
    except ValueError:
        # It was killed, or met a bug and wrote its traceback to our stderr.
        return VarlinkAnswer(error="ckpt.guard.TaskDied")
    return VarlinkAnswer(error=document["error"], parameters=document["parameters"])
