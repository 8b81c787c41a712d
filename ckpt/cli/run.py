"""`ckpt run`."""

from __future__ import annotations

import os
import signal
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any, Final

import click

from ckpt.cli import wiring
from ckpt.cli.attachment import attend, sources_of
from ckpt.cli.call import Call, make_command
from ckpt.cli.failures import text_of
from ckpt.cli.run_options import SECTIONS, RunCall, run_call, run_parameters
from ckpt.cli.streams import Streams
from ckpt.cli.supervising import hold_signals
from ckpt.errors import CommandFailed, Interrupted
from ckpt.model.supervision import RUN_AGAIN_CODE, OnTerm, Supervision
from ckpt.units import CheckpointId

if TYPE_CHECKING:
    from ckpt.host.jobs import JobRecord

_NOT_RUN: Final = (126, 127)
"""It cannot be executed, or is not there."""


@make_command(
    "run",
    example="ckpt run --name sim --every 10m --keep 3 --resume -- ./simulate --steps 100000",
    sections=SECTIONS,
    # What follows CMD belongs to CMD.
    context_settings={"allow_interspersed_args": False},
)
@run_parameters
@click.argument("words", metavar="-- CMD...", nargs=-1, required=True, type=click.UNPROCESSED)
@click.pass_obj
def command(call: Call, /, **given: Any) -> int:
    """Start CMD as a job: in its own cgroup and PID namespace, so that it can be restored anywhere.

    In the foreground its output is relayed, signals are forwarded, and the exit code is CMD's (128 + N if
    signal N ended it; 127 and 126 if it is not there or cannot be executed). It reads our standard input; with --detach
    /dev/null. A pipe ends for it when it ends for us, as in any pipeline also when the writer was killed.

    With --every, --resume or --on-term checkpoint the job is supervised: checkpoints are taken while it runs, and the
    same command line, run again after a crash or a reboot, goes on from the newest one that is whole. Its log, and the
    files of --with-files, are taken back to that moment, too, and what it had read of a pipe is left out of the same
    input: what a job does after its 'ckpt run' was killed in the middle of the input does not count. SIGUSR1 asks for a checkpoint now. Exit code 75 says
    that the job was ended with a checkpoint: run the same command again.

    A volume lives until 'ckpt rm-job', whatever becomes of the processes: a job of the same name finds it again.
    """
    wiring.require_root("ckpt run")
    wanted = run_call(call, given)
    try:
        return _run(call, wanted)
    except CommandFailed as error:
        if wanted.detach or error.command != wanted.words[0] or error.status not in _NOT_RUN:
            raise
        # In the foreground the exit code is CMD's, also of one that cannot be executed: what a shell gives.
        click.echo(text_of(error), err=True)
        return error.status


def _run(call: Call, wanted: RunCall) -> int:
    if wanted.supervision is not None:
        return _run_supervised(call, wanted, wanted.supervision)
    with Streams(tty=wanted.tty, detached=wanted.detach) as streams:
        stdin, terminal = streams.to_start()
        registry, record = wiring.start_job(
            wanted.job,
            wanted.words,
            log=wanted.log,
            apart=not wanted.detach and terminal is None,
            volumes=wanted.volumes,
            network=wanted.network,
            stdin=stdin,
            terminal=terminal,
            memory_max=wanted.memory_max,
            feeder=streams.feeder,
        )
        if not wanted.detach:
            hold_signals()
            streams.started(registry, record)
            sources = sources_of(registry, wanted.job, from_now=False)
            code = attend(registry, wanted.job, sources, streams.participants)
            wiring.tidy_job(wanted.job)
            return code
    _tell(call, record)
    return 0


def _run_supervised(call: Call, wanted: RunCall, supervision: Supervision) -> int:
    # Imported late: what is not supervised shall start quickly.
    from ckpt.cli.group_supervising import Ending  # noqa: PLC0415
    from ckpt.cli.overseeing import ForegroundTeller, conclude, oversee  # noqa: PLC0415
    from ckpt.cli.resuming import begin, begin_again, interruptions_noted  # noqa: PLC0415
    from ckpt.cli.supervise import start_supervisor  # noqa: PLC0415
    from ckpt.host import supervision as kept  # noqa: PLC0415

    registry = wiring.jobs()
    teller = ForegroundTeller(output=call.output)
    ending = Ending(supervision)
    with ExitStack() as held:
        streams: Streams | None = None
        with interruptions_noted() as noted:
            try:
                held.enter_context(kept.lock(registry, wanted.job))
                streams = held.enter_context(Streams(tty=wanted.tty, detached=wanted.detach))
                beginning = begin(call, wanted, supervision, teller, streams, ending=ending)
                if not wanted.detach:
                    hold_signals()
            except Interrupted:
                is_asked = signal.SIGTERM in noted and supervision.on_term is OnTerm.CHECKPOINT
                if is_asked:
                    ending.ask()  # before the look: who brings the job back meanwhile learns of it
                beginning = None if streams is None else begin_again(wanted, teller, streams)
                if wanted.detach if beginning is not None else not is_asked:
                    raise
                if beginning is not None:
                    hold_signals()
        if beginning is None or streams is None:
            teller.say(f"{wanted.job} was not begun, and nothing is lost: run the same command again")
            return RUN_AGAIN_CODE
        if beginning.ended is not None:
            return conclude(registry, beginning.record, supervision, beginning.ended, teller)
        kept.save(registry, wanted.job, supervision)
        if not wanted.detach:
            return oversee(
                registry,
                beginning.record,
                supervision,
                beginning.sources,
                teller,
                participants=streams.participants,
                signals=tuple(noted),
                ends=ending.is_asked(),
            )
    start_supervisor(wanted.job)
    if ending.is_asked() and (supervisor := kept.supervisor_of(registry, wanted.job)) is not None:
        with suppress(ProcessLookupError):
            os.kill(supervisor, signal.SIGTERM)
    _tell(call, beginning.record, restored=beginning.restored)
    return 0


def _tell(call: Call, record: JobRecord, *, restored: CheckpointId | None = None) -> None:
    call.output.result(
        {
            "job": record.name,
            "pid": record.root.pid,
            "cgroup": record.cgroup,
            "command_pid": record.command.pid,
            "restored_from": restored,
        },
        f"{record.name} runs: pid {record.root.pid}, cgroup {record.cgroup}",
        brief=record.name,
    )
