"""How a supervised job begins: taken over where it runs, from its newest checkpoint, or from its command."""

from __future__ import annotations

import shlex
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from types import FrameType
from typing import TYPE_CHECKING, Final

from ckpt.cli import wiring
from ckpt.cli.attachment import sources_of
from ckpt.cli.call import Call
from ckpt.cli.documents import rfc3339
from ckpt.cli.interruption import SIGNALS
from ckpt.cli.progress import telling
from ckpt.cli.relaying import Source
from ckpt.cli.run_options import RunCall
from ckpt.cli.streams import Streams
from ckpt.cli.supervisor import Teller
from ckpt.cli.wiring_suspend import suspended_jobs
from ckpt.errors import CkptError, NoSuchTarget, WrongState
from ckpt.flow.resume import ResumeCall, Resumed, resume
from ckpt.host import supervision as kept
from ckpt.host.feeding import is_cut_short
from ckpt.host.locks import once_free
from ckpt.host.starting import STDIN_POSITION
from ckpt.model.clocks import TimePolicy
from ckpt.model.inodes import InodePolicy
from ckpt.model.supervision import Supervision
from ckpt.units import CheckpointId, JobName

if TYPE_CHECKING:
    from ckpt.cli.group_supervising import Ending
    from ckpt.host.jobs import JobRecord, JobRegistry, JobView
    from ckpt.host.launch import Exit
    from ckpt.host.outside import Joined
    from ckpt.model.checkpoint import Checkpoint

_SIGNALLED: Final = 128
_PATIENCE_S: Final = 60.0
"""How long others are waited for that are at the job."""

_WORDS_SHOWN: Final = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Beginning:
    """A job that runs, what is to be relayed of it, and the checkpoint that it came from.

    `ended` is how it ended while nobody supervised it; None where it runs.
    """

    record: JobRecord
    sources: list[Source]
    restored: CheckpointId | None = None
    ended: Exit | None = None


def begin(
    call: Call,
    wanted: RunCall,
    supervision: Supervision,
    teller: Teller,
    streams: Streams,
    *,
    ending: Ending,
) -> Beginning | None:
    """Have the job run, whose supervisor's lock is held; None where its group was asked to end meanwhile.

    Raises:
        WrongState: it was moved to another host; or runs, and is not to be resumed.
        ObjectCorrupt: it has checkpoints, and none of them is whole.
        Exception: what the start or the restore raise.
    """
    if not wanted.resume:
        return _start(wanted, streams)
    for action in wiring.recover():
        if action.problem:
            teller.warn(f"{action.subject}: {action.done}: {action.problem}")
    with _in_turn(wanted, supervision):
        return _go_on(call, wanted, supervision, teller, streams, ending=ending)


@contextmanager
def _in_turn(wanted: RunCall, supervision: Supervision) -> Iterator[None]:
    """Look and restore while nobody else does: 'ckpt resume', or the supervisors of other jobs of the group.

    Raises:
        Locked: somebody does, for too long.
    """
    with ExitStack() as held:
        if supervision.group:
            from ckpt.cli.group_supervising import locked  # noqa: PLC0415 - few jobs are in a group

            held.enter_context(locked(JobName(supervision.group)))
        held.enter_context(once_free(lambda: suspended_jobs().lock(wanted.job), _PATIENCE_S))
        yield


def _go_on(
    call: Call,
    wanted: RunCall,
    supervision: Supervision,
    teller: Teller,
    streams: Streams,
    *,
    ending: Ending,
) -> Beginning | None:
    registry = wiring.jobs()
    view = _look(registry, wanted)
    if view is not None and is_cut_short(registry, view.record):
        _discard(view, wanted, teller)
    elif view is not None and view.is_alive:
        teller.say(f"{wanted.job} runs, and is supervised from now on; what it wrote is in its log")
        _tell_of_command(view.record, wanted, teller)
        record = _with_log(view.record, wanted, registry)
        streams.taken_over(record, teller.warn)
        return Beginning(record=record, sources=_sources(wanted, registry, from_now=True))
    elif view is not None and view.exit is not None and _ended_unseen(view, registry):
        teller.say(f"{wanted.job} ended with code {view.exit.shell_code} while nobody supervised it")
        return Beginning(record=view.record, sources=[], ended=view.exit)
    if ending.is_asked():
        return None
    before = _sources(wanted, registry, from_now=True)
    former = None if view is None else view.record
    joined = streams.to_restore(registry, former, wanted.log)
    # What it has read is part of what it did: without that it would go on to a wrong result.
    was_fed = former is not None and former.feeder is not None
    position = f"{registry.directory(wanted.job)}/{STDIN_POSITION}" if was_fed else ""
    resumed = _resume(call, wanted, supervision, joined, having=position)
    if resumed is None:
        if was_fed:
            teller.say(f"{wanted.job} begins anew: no checkpoint says how much it had read of its input")
        elif view is not None and (view.exit is None or view.exit.shell_code):
            teller.say(_begins_anew(registry, wanted.job, supervision))
        return _start(wanted, streams)
    beginning = _resumed(wanted, supervision, teller, resumed, before=before, former=former)
    streams.restored(registry, beginning.record, teller.warn)
    return beginning


@contextmanager
def interruptions_noted() -> Iterator[list[int]]:
    """The signals that interrupt a command, as they come; they have their effect as well."""
    came: list[int] = []
    former = {int(number): handler for number in SIGNALS if callable(handler := signal.getsignal(number))}

    def note(number: int, frame: FrameType | None) -> None:
        came.append(number)
        former[number](number, frame)

    for number in former:
        signal.signal(number, note)
    try:
        yield came
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def begin_again(wanted: RunCall, teller: Teller, streams: Streams) -> Beginning | None:
    """After an interruption while the job was being begun: the job where it runs by now, else None."""
    registry = wiring.jobs()
    view = _look(registry, wanted)
    if view is not None and view.is_alive and not is_cut_short(registry, view.record):
        streams.went_on(registry, view.record, teller.warn)
        return Beginning(record=view.record, sources=_sources(wanted, registry, from_now=True))
    return None


def _look(registry: JobRegistry, wanted: RunCall) -> JobView | None:
    try:
        return registry.look(wanted.job)
    except NoSuchTarget:
        return None


def _discard(view: JobView, wanted: RunCall, teller: Teller) -> None:
    """End the job if it runs: what it did since who fed it was gone does not count.

    Raises:
        WrongState: it would be fed no more.
        Locked: somebody is at it, for too long.
        OsRefused: a task cannot be killed.
    """
    job = view.name
    if wanted.detach:
        raise WrongState(
            subject=f"Job {job}",
            state="without its input, as who fed that is gone",
            operation="--detach",
            needed="to be given its input again",
            remedy="Run it in the foreground, with the same input as before.",
        )
    runs = "runs, but " if view.is_alive else ""
    teller.say(f"{job} {runs}lost its input when who fed it was gone: what it did since then does not count")
    if view.is_alive:
        with once_free(lambda: wiring.dump_lock(view.record), _PATIENCE_S):
            wiring.kill_job(view.record)


def _ended_unseen(view: JobView, registry: JobRegistry) -> bool:
    """Whether the job ended by itself after its supervisor was gone: then there is nothing to go on with."""
    record, ended = view.record, view.exit
    return (
        ended is not None
        and ended.shell_code <= _SIGNALLED
        and record.stopped_by is None
        and not registry.moved_to(view.name)
        and kept.is_supervised(registry, view.name)
    )


def _start(wanted: RunCall, streams: Streams) -> Beginning:
    stdin, terminal = streams.to_start()
    registry, record = wiring.start_job(
        wanted.job,
        wanted.words,
        log=wanted.log,
        apart=not wanted.detach and terminal is None,
        volumes=wanted.volumes,
        network=wanted.network,
        group=wanted.supervision.group if wanted.supervision is not None else "",
        stdin=stdin,
        terminal=terminal,
        memory_max=wanted.memory_max,
        feeder=streams.feeder,
    )
    streams.started(registry, record)
    return Beginning(record=record, sources=_sources(wanted, registry, from_now=False))


def _resume(
    call: Call, wanted: RunCall, supervision: Supervision, joined: Joined, *, having: str
) -> Resumed | None:
    if wanted.memory_max is not None:  # it may be more by now, and a restore takes the cgroup as it finds it
        wiring.limit_memory(wanted.job, wanted.memory_max)
    if supervision.group:
        from ckpt.cli.group_resuming import resume_member  # noqa: PLC0415 - few jobs are in a group

        return resume_member(wanted.job, supervision, joined)
    asked = ResumeCall(job=wanted.job, time=TimePolicy.SUSPEND, inodes=InodePolicy.KEEP, having=having)
    with telling(call.output) as announce:
        ports = wiring.restore_ports(supervision.store, announce, joined=joined)
        return resume(asked, ports, wiring.open_store(supervision.store), wiring.jobs())


def _resumed(
    wanted: RunCall,
    supervision: Supervision,
    teller: Teller,
    resumed: Resumed,
    *,
    before: list[Source],
    former: JobRecord | None,
) -> Beginning:
    registry, report = wiring.jobs(), resumed.report
    for sentence in (*resumed.damaged, *report.warnings):
        teller.warn(sentence)
    checkpoint = wiring.open_store(supervision.store).load(report.id).checkpoint
    taken = rfc3339(checkpoint.created_ns)[:19]
    teller.say(f"{wanted.job} goes on from {report.id[:12]} (taken {taken}Z)")
    if former is not None and former.restored_from is None and checkpoint.created_ns < former.created:
        began = rfc3339(former.created)[:19]
        teller.warn(f"that is of an earlier run of {wanted.job}: the last one, begun {began}Z, has none")
    record = registry.load(wanted.job)
    _tell_of_command(record, wanted, teller)
    return Beginning(
        record=_with_log(record, wanted, registry),
        sources=_cut(_sources(wanted, registry, from_now=False), before, checkpoint),
        restored=report.id,
    )


def _begins_anew(registry: JobRegistry, job: JobName, supervision: Supervision) -> str:
    sentence = f"{job} begins anew: the store {supervision.store} has no checkpoint of it"
    with suppress(CkptError):
        before = kept.load(registry, job)
        if before is not None and before.store != supervision.store:
            sentence += f"; before, they went to {before.store}"
    return sentence


def _tell_of_command(record: JobRecord, wanted: RunCall, teller: Teller) -> None:
    if record.started_as and record.started_as != wanted.words:
        words = shlex.join(record.started_as)
        shown = words if len(words) <= _WORDS_SHOWN else f"{words[:_WORDS_SHOWN]} …"
        teller.warn(f"{wanted.job} goes on as it was started, by '{shown}': CMD of this call is not used")


def _with_log(record: JobRecord, wanted: RunCall, registry: JobRegistry) -> JobRecord:
    """The job with the log that the user wants: a restore files its own, and knows nothing of another one."""
    if wanted.log and record.log != wanted.log:
        record = replace(record, log=wanted.log)
        registry.save(record)
    return record


def _cut(sources: list[Source], before: list[Source], checkpoint: Checkpoint) -> list[Source]:
    """The sources from where the checkpoint has cut them; what it does not have goes on from where it was."""
    offsets = {source.path: source.offset for source in before} | {
        saved.path: saved.content.size_bytes for saved in checkpoint.saved_files
    }
    for source in sources:
        source.offset = offsets.get(source.path, 0)
    return sources


def _sources(wanted: RunCall, registry: JobRegistry, *, from_now: bool) -> list[Source]:
    return [] if wanted.detach else sources_of(registry, wanted.job, from_now=from_now)
