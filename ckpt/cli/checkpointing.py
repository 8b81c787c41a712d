"""One checkpoint of a supervised job, taken by a child of the supervisor while that goes on serving the job.

On the channel, a SEQPACKET socket with one JSON document a packet, the child says:
  {"event": "frozen"}                                             all tasks stand still; it waits for a word: an
                                                                  empty line to go on, else why it must not
  {"event": "taken", "id", "lead_ns", "frozen_ns", "total_ns", "stored_bytes", "warnings"}
                                                                  durable, and with `stop` the job is ended
  {"event": "failed", "slug", "message", "hint", "exit_code"}     nothing was taken, and the job runs on
  {"event": "untidy", "slug", "message"}                          older ones could not be removed, or not enough
  {"event": "foreseen", "obstacles"}                              none was wanted yet: what would be in its way
and ends.

Rules:
- The child has a session of its own, and ignores what is meant for the supervisor's process group or its cgroup.
  SIGINT from the supervisor alone makes it give up, in order.
- If the supervisor dies, the child finishes; but one that waits for its word at the freeze gives up.
- The child holds the supervisor's lock as long as it lives: nobody else supervises the job meanwhile.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import socket
import traceback
from dataclasses import dataclass, replace
from typing import Any, Final, NoReturn

from ckpt.cli import wiring
from ckpt.cli.interruption import interruptible
from ckpt.cli.output import Output
from ckpt.cli.progress import telling
from ckpt.errors import CkptError, DumpFailed, GroupFailed
from ckpt.flow.dump import DumpCall
from ckpt.flow.dump import dump as take_checkpoint
from ckpt.host.supervision import appended_files
from ckpt.model.pacing import Cost
from ckpt.model.reports import DumpReport
from ckpt.model.supervision import Reason, Supervision
from ckpt.model.target import TargetRef
from ckpt.model.workload import TargetKind
from ckpt.units import SECOND, ByteCount, CheckpointId, JobName, Nanoseconds

FREEZE_TIMEOUT: Final = Nanoseconds(10 * SECOND)
WORD_TIMEOUT_S: Final = 2.0
"""How long the job stands still at most, waiting for the supervisor's word."""

_TEXT_MAX: Final = 2000
_GO_ON: Final = b"\n"
_WARNINGS_MAX: Final = 5
_PACKET_BYTES_MAX: Final = _WARNINGS_MAX * _TEXT_MAX * len(r"\ud83d\ude00") + 4096
"""However its characters are written: a packet that is cut off says nothing."""
_SILENT: Final = Output(json=False, quiet=True)
_IGNORED: Final = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """Which checkpoint is wanted; with `stop` the job is ended once it is durable.

    Where `asks_at_freeze`, the child waits for the supervisor's word when all stand still. With `only_looks` none is
    taken: what would be in its way is said.
    """

    job: JobName
    supervision: Supervision
    reason: Reason
    stop: bool = False
    asks_at_freeze: bool = False
    only_looks: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Frozen:
    """All tasks stand still, until go_on()."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """A checkpoint is durable."""

    id: CheckpointId
    lead_ns: Nanoseconds
    frozen_ns: Nanoseconds
    total_ns: Nanoseconds
    stored_bytes: ByteCount
    warnings: tuple[str, ...]

    @property
    def cost(self) -> Cost:
        """What it took."""
        return Cost(lead_ns=self.lead_ns, frozen_ns=self.frozen_ns, total_ns=self.total_ns)


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """None was taken: the error's own words."""

    slug: str
    message: str
    hint: str
    exit_code: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Untidy:
    """Older ones could not be removed, or that is not enough; `slug` is the kind of obstacle."""

    slug: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Foreseen:
    """What would be in the way of a checkpoint, in sentences; none if nothing is."""

    obstacles: tuple[str, ...]


Event = Frozen | Taken | Failed | Untidy | Foreseen


class Checkpointing:
    """A checkpoint under way, as its supervisor sees it."""

    def __init__(self, pid: int, channel: socket.socket) -> None:
        self._pid = pid
        self._channel = channel

    @classmethod
    def start(cls, order: Order) -> Checkpointing:
        """Begin it.

        Raises:
            OSError: no process could be started.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        gc.freeze()  # what is there already is not touched by the child, and so is not copied
        # Until the child has handlers of its own, its signals would be noted as if they were the supervisor's.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, (*_IGNORED, signal.SIGINT))
        try:
            pid = os.fork()
            if pid == 0:
                _be_child(order, theirs)
        except OSError:
            ours.close()
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            gc.unfreeze()
            theirs.close()
        return cls(pid, ours)

    @property
    def descriptor(self) -> int:
        """Readable when there is something to receive()."""
        return self._channel.fileno()

    def receive(self) -> Event | None:
        """What it says; None when it has ended, and is reaped."""
        try:
            packet = self._channel.recv(_PACKET_BYTES_MAX)
        except ConnectionResetError:
            packet = b""
        if packet:
            return _event(json.loads(packet))
        self._channel.close()
        os.waitpid(self._pid, 0)
        return None

    def go_on(self) -> None:
        """All that is of the instant is noted."""
        self._answer(_GO_ON)

    def refuse(self, why: str) -> None:
        """It could not be noted: there is no checkpoint of this instant."""
        self._answer(why.encode("utf-8", "replace")[:_TEXT_MAX] or b"?")

    def _answer(self, word: bytes) -> None:
        with contextlib.suppress(OSError):
            self._channel.send(word)

    def cancel(self) -> None:
        """Have it give up: what it has begun is undone, unless it has succeeded by then."""
        os.kill(self._pid, signal.SIGINT)  # not reaped before receive() has said so: the pid is its own

    def kill(self) -> None:
        """End it at once; its guardian undoes what it has begun."""
        os.kill(self._pid, signal.SIGKILL)


def preload() -> None:
    """Load what every checkpoint needs, once and for all children."""
    wiring.load_dump_modules()


def _be_child(order: Order, channel: socket.socket) -> NoReturn:
    code = 1
    try:
        _settle_in(channel)
        with interruptible("the checkpoint"):
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
            if order.only_looks:
                _look(order, channel)
            else:
                _take(order, channel)
        code = 0
        if not order.only_looks:
            _tidy(order, channel)
    except CkptError as error:
        _say(
            channel,
            event="failed",
            # What was in the way of another job of the group was in the way of this one.
            slug=error.their_slug if isinstance(error, GroupFailed) else error.slug,
            message=error.message[:_TEXT_MAX],
            hint=error.advice[:_TEXT_MAX],
            exit_code=error.exit_code,
        )
    except BaseException as error:  # noqa: BLE001 - a bug is told like every failure, and ends here
        _say(
            channel,
            event="failed",
            slug="bug",
            message=f"A bug in ckpt: {type(error).__name__}: {error}"[:_TEXT_MAX],
            hint="".join(traceback.format_exception(error))[-2 * _TEXT_MAX :],
            exit_code=70,
        )
    finally:
        os._exit(code)


def _settle_in(channel: socket.socket) -> None:
    """Let go of all that is the supervisor's alone."""
    signal.set_wakeup_fd(-1)
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    locks = f"{wiring.state()}/locks/"
    for name in os.listdir("/proc/self/fd"):
        fd = int(name)
        # What is left are the objects of frames that never return: no descriptor is closed twice.
        with contextlib.suppress(OSError):
            if fd > 2 and fd != channel.fileno() and not os.readlink(f"/proc/self/fd/{fd}").startswith(locks):
                os.close(fd)


def _take(order: Order, channel: socket.socket) -> None:
    supervision = order.supervision
    began = wiring.stopwatch()
    froze_at = [began]

    def froze() -> None:
        froze_at[-1] = wiring.stopwatch()
        if order.asks_at_freeze:
            _await_word(order, channel)

    def call_of(job: JobName, own: Supervision) -> DumpCall:
        return DumpCall(
            target=TargetRef(kind=TargetKind.JOB, name=job),
            job=None,
            tags=(),
            message=order.reason.value,
            stop=order.stop,
            options=own.options,
            freeze_timeout=FREEZE_TIMEOUT,
            with_files=own.with_files,
            # The supervisor feeds its own job alone.
            appended=appended_files(
                wiring.jobs(), job, own.log, notes_position=order.asks_at_freeze and job == order.job
            ),
            froze=froze if job == order.job else None,
        )

    if supervision.group:
        from ckpt.cli.group_supervising import take_together  # noqa: PLC0415 - few jobs are in a group

        # Another process has seen the freeze; both clocks are CLOCK_MONOTONIC.
        report = take_together(order.job, supervision, call_of, stop=order.stop)
        froze_at = [report.checkpoint.clocks.monotonic_ns]
    else:
        with telling(_SILENT) as announce:
            ports = wiring.dump_ports(supervision.store, announce)
            report = take_checkpoint(call_of(order.job, supervision), ports)
    _say_taken(channel, report, Nanoseconds(froze_at[-1] - began))


def _look(order: Order, channel: socket.socket) -> None:
    from ckpt.cli.foreseeing import obstacles  # noqa: PLC0415 - once in a job's life

    found = obstacles(order.job, order.supervision)
    _say(channel, event="foreseen", obstacles=[each[:_TEXT_MAX] for each in found[:_WARNINGS_MAX]])


def _await_word(order: Order, channel: socket.socket) -> None:
    _say(channel, event="frozen")
    channel.settimeout(WORD_TIMEOUT_S)
    try:
        word = channel.recv(_TEXT_MAX)
    except OSError:
        word = b""
    channel.settimeout(None)
    if word not in {b"", _GO_ON}:
        raise DumpFailed(cause=word.decode("utf-8", "replace"))
    if not word:
        raise DumpFailed(
            cause=f"the supervisor of {order.job} has ended, or gave no word within {WORD_TIMEOUT_S:g} s"
        )


def _tidy(order: Order, channel: socket.socket) -> None:
    """Remove what is not kept; what cannot be removed now is at the next checkpoint."""
    from ckpt.cli.keeping import prune  # noqa: PLC0415 - the checkpoint itself does not need it

    try:
        with interruptible("removing older checkpoints"):
            too_large = prune(order.job, order.supervision)
    except CkptError as error:
        sentence = f"older checkpoints of {order.job} stay: {error.message}"
        _say(channel, event="untidy", slug=error.slug, message=sentence[:_TEXT_MAX])
    else:
        if too_large:
            _say(channel, event="untidy", slug="too-large", message=too_large)


def _say_taken(channel: socket.socket, report: DumpReport, lead: Nanoseconds) -> None:
    _say(
        channel,
        event="taken",
        id=report.id,
        lead_ns=lead,
        frozen_ns=report.checkpoint.frozen_ns,
        total_ns=report.total_ns,
        stored_bytes=report.stored_bytes,
        warnings=[warning[:_TEXT_MAX] for warning in report.warnings[:_WARNINGS_MAX]],
    )


def _say(channel: socket.socket, **document: Any) -> None:
    # A supervisor that has died is told nothing, and what was begun is finished.
    with contextlib.suppress(OSError):
        channel.send(json.dumps(document).encode())


def _event(document: dict[str, Any]) -> Event:
    kind = document.pop("event")
    if kind == "frozen":
        return Frozen()
    if kind == "taken":
        return replace(Taken(**document), warnings=tuple(document["warnings"]))
    if kind == "foreseen":
        return Foreseen(obstacles=tuple(document["obstacles"]))
    return Failed(**document) if kind == "failed" else Untidy(**document)
