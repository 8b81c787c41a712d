"""The conversation with one CRIU process: a request, notices on the way that hooks answer, the answer.

Rules:
  * start() returns as soon as the process exists; its start-up runs meanwhile, and request() follows.
  * A hook that raises makes the reply a failure: CRIU rolls back, and the hook's own exception is what the
    caller gets, once CRIU has ended.
  * The deadline counts CRIU's time alone; hooks bound themselves.
  * Where a deadline or cancel() ends CRIU, it has ended, with all that it had made, before the error comes.
Source: criu/cr-service.c, criu/action-scripts.c. A reply is read only while CRIU waits in a notice.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NoReturn, Self

from ckpt.errors import CriuDied, CriuStuck, Interrupted
from ckpt.host.criu.channel import END_TIMEOUT, CancelledError, Channel, EndedError, OutOfTimeError
from ckpt.host.criu.launch import Launcher, launch_child
from ckpt.host.criu.outcome import CriuVersion
from ckpt.host.criu.pb import rpc
from ckpt.units import SECOND, Nanoseconds, Pid

COMMIT_POINTS: Final = frozenset(("post-dump", "post-restore"))
"""A successful reply there lets CRIU end the dumped tasks, or lets the restored ones go."""

START_TIMEOUT: Final = Nanoseconds(10 * SECOND)


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """CRIU stands at `phase` and waits. `pid`: of the restored root, where CRIU tells it.

    `fd` is the descriptor that came along (the master of an orphaned terminal); it belongs to the hook.
    """

    phase: str
    pid: Pid | None = None
    fd: int | None = None


Hook = Callable[[Notice], Sequence[str] | None]
"""Called at a notice; at "query-ext-files" it may return more externals."""

Hooks = Mapping[str, Hook]
"""From phase to hook. At a dump: pre-dump, network-lock, query-ext-files, post-dump, network-unlock. At a
restore: pre-restore, setup-namespaces, post-setup-namespaces, post-restore, network-unlock, pre-resume,
post-resume; orphan-pts-master as it happens. CRIU ignores that pre-resume and post-resume failed: the tasks
run."""


class Worker:
    """A CRIU process that is ready for one request; a context manager that ends it."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._version: CriuVersion | None = None
        self._left: Nanoseconds = START_TIMEOUT
        self._operation = "its start"
        self._phase = ""
        self._cancellable = True
        self._rolled_back = False

    @classmethod
    def start(
        cls,
        criu: Path,
        *,
        launcher: Launcher = launch_child,
        kept_fds: tuple[int, ...] = (),
        terminal: bool = False,
    ) -> Self:
        """Start CRIU and return at once; its start-up goes on beside the caller.

        Args:
            criu: The path that find_criu() gave.
            launcher: How the process is made.
            kept_fds: Descriptors that CRIU inherits, for RestoreRequest.inherit_fds.
            terminal: CRIU keeps this process's terminal and process group (RestoreRequest.shell_job).

        Raises:
            OsRefused: it could not be started.
        """
        worker = cls(Channel(criu, launcher, kept_fds=kept_fds, terminal=terminal))
        try:
            # Answering this, CRIU has loaded its libraries and read its options: what remains of its
            # start-up (the probing of the kernel) belongs to the request.
            worker._channel.send(rpc.criu_req(type=rpc.VERSION, keep_open=True))
        except EndedError as error:
            worker._died(error)
        return worker

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def pid(self) -> Pid:
        """The pid of CRIU's process."""
        return self._channel.child.pid

    def version(self) -> CriuVersion:
        """What this CRIU says of itself; waits for the end of its start-up at the first call.

        Raises:
            CriuDied, CriuStuck, Interrupted: it did not come up.
        """
        if self._version is None:
            answer = self.receive()
            said = answer.response.version
            self._version = CriuVersion(
                major=said.major_number, minor=said.minor_number, sublevel=said.sublevel, git_id=said.gitid
            )
        return self._version

    def send(self, message: Any, *, operation: str, timeout: Nanoseconds) -> None:
        """Send a request; `operation` names it in errors, `timeout` bounds CRIU's own time from now on.

        Raises:
            CriuDied, CriuStuck, Interrupted: CRIU did not come up, or is gone.
        """
        self.version()
        self._operation = operation
        self._left = timeout
        try:
            self._channel.send(message)
        except EndedError as error:
            self._died(error)

    def receive(self) -> Received:
        """Wait for the next notice, which reply() must answer, or for the answer to the request.

        Raises:
            CriuDied: it ended without an answer.
            CriuStuck: the time is up; CRIU was ended.
            Interrupted: cancel() was called; CRIU was ended.
        """
        began = time.monotonic_ns()
        try:
            response, fd = self._channel.receive(
                Nanoseconds(began + self._left), cancellable=self._cancellable
            )
        except EndedError as error:
            self._died(error)
        except OutOfTimeError:
            self._channel.kill()
            raise CriuStuck(
                operation=self._operation, timeout_s=self._left / 1e9, cause="it made no progress"
            ) from None
        except CancelledError:
            self._channel.kill()
            raise Interrupted(operation=self._operation) from None
        self._left = Nanoseconds(max(0, self._left - (time.monotonic_ns() - began)))
        if response.type != rpc.NOTIFY:
            if self._rolled_back:
                self._channel.close()
                raise Interrupted(operation=self._operation)
            return Received(response=response)
        self._phase = response.notify.script
        pid = Pid(response.notify.pid) if response.notify.HasField("pid") else None
        return Received(response=response, notice=Notice(phase=response.notify.script, pid=pid, fd=fd))

    def reply(self, *, success: bool, externals: Sequence[str] = ()) -> None:
        """Answer the notice that CRIU waits in; after cancel(), with a failure whatever `success` says.

        A successful answer at a commit point cannot be taken back: cancel() does nothing from then on.

        Raises:
            CriuDied: CRIU is gone.
        """
        if self._cancellable and self._channel.is_cancelled:
            # CRIU rolls back by itself, which is gentler than its end: connections are unlocked, too.
            success = False
            self._rolled_back = True
        if self._rolled_back or (success and self._phase in COMMIT_POINTS):
            self._cancellable = False
        message = rpc.criu_req(type=rpc.NOTIFY, notify_success=success)
        if externals:
            message.opts.images_dir_fd = -1
            message.opts.external.extend(externals)
        try:
            self._channel.send(message)
        except EndedError as error:
            self._died(error)

    @property
    def last_words(self) -> str:
        """What CRIU wrote to stderr before it had a log; may be empty."""
        return self._channel.last_words

    def cancel(self) -> None:
        """Give the request up: in a hook, by a failing reply when it returns; else by the end of CRIU, now.

        May be called from any thread and from a signal handler. The caller of the request gets Interrupted,
        unless the commit point had been passed.
        """
        self._channel.cancel()

    def kill(self) -> None:
        """End CRIU at once, with everything that it has not yet handed over."""
        self._channel.kill()

    def close(self, patience: Nanoseconds = END_TIMEOUT) -> None:
        """Give CRIU so much time to end by itself, then end it; safe to repeat."""
        self._channel.close(patience)

    def _died(self, error: EndedError) -> NoReturn:
        self._channel.close()
        raise CriuDied(
            operation=self._operation,
            status=_in_words(error.status),
            cause=self.last_words or "it gave no reason",
        ) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """A message from CRIU: a notice, or else the answer."""

    response: Any
    notice: Notice | None = None


def converse(
    worker: Worker, message: Any, *, operation: str, timeout: Nanoseconds, hooks: Hooks
) -> tuple[Any, BaseException | None]:
    """Send the request and let the hooks answer its notices until the answer comes.

    Returns:
        CRIU's answer, and what a hook raised: if there is something, raise it when the answer's work is done.

    Raises:
        CriuDied, CriuStuck, Interrupted: as Worker.receive() does. If a hook raised before, that is its cause.
    """
    worker.send(message, operation=operation, timeout=timeout)
    return advance(worker, hooks)


def advance(worker: Worker, hooks: Hooks) -> tuple[Any, BaseException | None]:
    """Go on with a request that was sent, as converse() does."""
    raised: BaseException | None = None
    while True:
        try:
            received = worker.receive()
            if received.notice is None:
                return received.response, raised
            externals, trouble = run_hook(received.notice, hooks)
            raised = raised or trouble
            worker.reply(success=trouble is None, externals=externals)
        except (CriuDied, CriuStuck, Interrupted) as error:
            if raised is not None:
                raise raised from error
            raise


def run_hook(notice: Notice, hooks: Hooks) -> tuple[Sequence[str], BaseException | None]:
    """Call the notice's hook, if there is one: the externals that it returned, and what it raised."""
    hook = hooks.get(notice.phase)
    if hook is None:
        if notice.fd is not None:
            os.close(notice.fd)
        return (), None
    try:
        return hook(notice) or (), None
    except BaseException as error:  # noqa: BLE001 - it is raised again when CRIU has rolled back
        return (), error


def _in_words(status: int | None) -> str:
    if status is None:
        return "still running"
    if status < 0:
        return f"killed by {signal.Signals(-status).name}"
    return f"exit status {status}"
