"""Supervise a job from now until its end, in the foreground or behind it, and say how it ended.

Rule: the exit code is the job's own, 128 + N for signal N; 75 when it lives on in a checkpoint.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import click

from ckpt.cli import wiring
from ckpt.cli.attachment import code_of_output, serve
from ckpt.cli.output import Output, on_one_line, shows_bars
from ckpt.cli.relaying import Source
from ckpt.cli.supervising import Participant
from ckpt.cli.supervisor import Supervisor, Teller
from ckpt.errors import CkptError, Locked, WrongState
from ckpt.host import supervision as kept
from ckpt.host.signals import unheard
from ckpt.model.supervision import RUN_AGAIN_CODE, AtEnd, Reason, Supervision

if TYPE_CHECKING:
    from ckpt.host.jobs import JobRecord, JobRegistry
    from ckpt.host.launch import Exit

_SIGNALLED: Final = 128
_KILLED: Final = _SIGNALLED + signal.SIGKILL
_MARK_TIMEOUT_S: Final = 60.0
_POLL_S: Final = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class ForegroundTeller:
    """Tells on stderr, which is the job's as well: successes only on a terminal or with -v."""

    output: Output

    def note(self, sentence: str) -> None:
        """What went well."""
        if self.output.verbose or (not self.output.quiet and shows_bars(sys.stderr)):
            self._write(sentence)

    def say(self, sentence: str) -> None:
        """What the user must know."""
        if not self.output.quiet:
            self._write(sentence)

    def warn(self, sentence: str) -> None:
        """What did not go well."""
        with contextlib.suppress(OSError):
            self.output.warn(sentence)

    def _write(self, sentence: str) -> None:
        # A terminal that is gone is no reason to leave the job alone.
        with contextlib.suppress(OSError):
            click.echo(f"ckpt: {on_one_line(sentence)}", err=True)


def oversee(
    registry: JobRegistry,
    record: JobRecord,
    supervision: Supervision,
    sources: list[Source],
    teller: Teller,
    *,
    participants: Sequence[Participant] = (),
    signals: Iterable[int] = (),
    ends: bool = False,
) -> int:
    """Supervise the job, whose lock is held, until it has ended; gives the exit code.

    `signals` came already, and are acted on first; with `ends` it is ended at once, with a last checkpoint.

    Raises:
        WrongState: it was moved to another host.
        OsRefused, NoSuchTarget: nobody saw how it ended; its checkpoints stay.
    """
    supervisor = Supervisor(
        registry,
        record,
        supervision,
        teller,
        cpus=len(os.sched_getaffinity(0)),
        participants=participants,
    )
    for number in signals:
        supervisor.heard(number)
    if ends and not supervisor.was_asked_to_end:
        supervisor.end()
    try:
        ended = serve(registry, record, sources, supervisor, participants)
    except WrongState:
        kept.remove(registry, record.name)
        raise
    # From here on nobody is left to be asked to end.
    with unheard():
        if supervisor.was_asked_to_end and ended.shell_code == _KILLED:
            _mark_last(registry, record, supervision)
        return conclude(registry, record, supervision, ended, teller) or code_of_output(sources)


def conclude(
    registry: JobRegistry, record: JobRecord, supervision: Supervision, ended: Exit, teller: Teller
) -> int:
    """Do what is to be done when a supervised job has ended so; gives the exit code."""
    job, code = record.name, ended.shell_code
    if code == _KILLED:
        _await_mark(registry, record)
        record = registry.find(job) or record
    wiring.tidy_job(job)
    if record.stopped_by is not None:
        teller.say(f"{job} was checkpointed as {record.stopped_by[:12]}: run the same command again to go on")
        return RUN_AGAIN_CODE
    if _removes(supervision.at_end, code):
        # Imported late: it opens the store, which a job without checkpoints never needs.
        from ckpt.cli.keeping import remove_own  # noqa: PLC0415

        try:
            remove_own(job, supervision)
        except CkptError as error:
            teller.warn(f"the checkpoints of {job} stay: {error.message}")
    kept.remove(registry, job)
    return code


def _removes(at_end: AtEnd, code: int) -> bool:
    match at_end:
        case AtEnd.SUCCESS:
            return code == 0
        case AtEnd.DELETE:
            return code <= _SIGNALLED
        case AtEnd.KEEP:
            return False


def _mark_last(registry: JobRegistry, record: JobRecord, supervision: Supervision) -> None:
    """Say that the job lives on in its last checkpoint, where who took that was interrupted before it said so."""
    _await_mark(registry, record)
    found = registry.find(record.name)
    if found is None or found.stopped_by is not None:
        return
    from ckpt.cli.keeping import own_of  # noqa: PLC0415 - as above

    with contextlib.suppress(CkptError):
        newest = own_of(wiring.open_store(supervision.store), record.name)[-1:]
        for each in newest:
            if each.checkpoint.message == Reason.TERM and each.checkpoint.created_ns > record.created:
                registry.mark_stopped(record.name, each.id)


def _await_mark(registry: JobRegistry, record: JobRecord) -> None:
    """Let a ckpt that may have ended the job after a checkpoint say so."""
    deadline = time.monotonic() + _MARK_TIMEOUT_S
    while time.monotonic() < deadline:
        found = registry.find(record.name)
        if found is None or found.stopped_by is not None:
            return
        try:
            with wiring.dump_lock(record):
                return
        except Locked:
            time.sleep(_POLL_S)
