"""Let a job go on from its newest checkpoint that is whole.

Rules:
- One that is damaged is told, and the next older one is tried; whatever else stands against a restore is an error.
- Never as if there were none: where all are damaged, or it cannot be known whose a damaged one is, that is refused.
- A job that went to another host does not go on here.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from ckpt.errors import FormatUnknown, ObjectCorrupt, ObjectMissing, WrongState
from ckpt.flow.ports import Jobs, Store
from ckpt.flow.restore import RestoreCall, RestorePorts, restore
from ckpt.model.clocks import TimePolicy
from ckpt.model.inodes import FilesPolicy, InodePolicy
from ckpt.model.reports import Problem, RestoreReport
from ckpt.units import CheckpointId, JobName

_DIGITS_SHOWN: Final = 12
_NAMED_MAX: Final = 3
_KINDS_OF_THE_HOST: Final = frozenset(
    ("record of job", "list of volumes", "record", "trust file", "signing key")
)
"""What is damaged on this host, and not in the store: no other checkpoint would help."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumeCall:
    """Which job, and how it is restored: `files` None writes saved files back, and else wants files as they were.

    Only a checkpoint that has the saved file `having` will do, unless that is "".
    """

    job: JobName
    time: TimePolicy
    inodes: InodePolicy
    files: FilesPolicy | None = None
    having: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resumed:
    """What was restored; `damaged` has a sentence for each newer checkpoint that could not be, or would not do."""

    report: RestoreReport
    damaged: tuple[str, ...]


def resume(call: ResumeCall, ports: RestorePorts, store: Store, jobs: Jobs) -> Resumed | None:
    """Restore the newest checkpoint of the job that is whole; None if the store has none of this job that would do.

    Raises:
        WrongState: the job went to another host, or runs.
        ObjectCorrupt: there are checkpoints, and none of them is whole.
        Exception: what restore() raises, but for a damaged checkpoint.
    """
    if host := jobs.moved_to(call.job):
        raise WrongState(
            subject=f"Job {call.job}",
            state=f"moved to {host}",
            operation="a resume",
            needed="to be of this host",
            remedy=f"Look for it there; once it is of no use, 'ckpt rm-job {call.job}' forgets it here.",
        )
    search = _Search(call.job, store)
    for checkpoint in search.newest_first():
        try:
            report = _restore(checkpoint, call, ports)
            if report is not None:
                return Resumed(report=report, damaged=(*search.damaged, *search.passed_over))
            search.pass_over(checkpoint, call.having)
        except ObjectCorrupt as error:
            if error.kind in _KINDS_OF_THE_HOST:
                raise
            search.note(checkpoint, error.message)
        except (ObjectMissing, FormatUnknown) as error:
            search.note(checkpoint, error.message)
    if search.damaged:
        raise _none_is_whole(call, store, search.damaged)
    return None


def _restore(checkpoint: CheckpointId, call: ResumeCall, ports: RestorePorts) -> RestoreReport | None:
    """What was restored; None if this one would not do."""
    ports.store.check_trust(checkpoint)
    found = ports.store.load(checkpoint).checkpoint
    # Where it is filed is not signed, the job's name in it is.
    if (job := found.job) != call.job:
        raise ObjectCorrupt(
            kind="receipt", name=checkpoint, reason=f"it names job {call.job}, and the checkpoint is of {job}"
        )
    if call.having and all(saved.path != call.having for saved in found.saved_files):
        return None
    return restore(
        RestoreCall(
            ref=checkpoint,
            job=call.job,
            time=call.time,
            inodes=call.inodes,
            new_pids=False,
            cgroup="",
            files=call.files,
        ),
        ports,
    )


class _Search:
    """The checkpoints of one job in a store, and what is wrong with those that cannot be restored."""

    def __init__(self, job: JobName, store: Store) -> None:
        self.job = job
        self.damaged: list[str] = []
        self.passed_over: list[str] = []
        self._store = store
        self._seen: set[CheckpointId] = set()

    def note(self, checkpoint: CheckpointId, message: str, *, doubt: str = "") -> None:
        """This one cannot be restored; `doubt` says why that may concern the job."""
        self.damaged.append(f"checkpoint {checkpoint[:_DIGITS_SHOWN]}{doubt} is not whole: {message}")

    def pass_over(self, checkpoint: CheckpointId, lacks: str) -> None:
        """This one would not do."""
        self.passed_over.append(
            f"checkpoint {checkpoint[:_DIGITS_SHOWN]} is passed over: it was taken without {lacks}"
        )

    def newest_first(self) -> Iterator[CheckpointId]:
        """Those of the job, each once; one that hides what it is of is noted as damaged when its turn comes."""
        for back in itertools.count():
            try:
                found = self._store.resolve(f"{self.job}~{back}")
            except ObjectMissing:
                return
            except (ObjectCorrupt, FormatUnknown):
                break  # it has lost its receipt, too: nothing says whose it is, nor of when
            if found not in self._seen:
                self._seen.add(found)
                yield found
        unreadable: list[Problem] = []
        stored = self._store.list(on_problem=unreadable.append)
        for problem in unreadable:
            if problem.subject not in self._seen:
                self.note(
                    CheckpointId(problem.subject), problem.message, doubt=", which may be one of this job,"
                )
        for each in reversed(stored):
            if each.checkpoint.job == self.job and each.id not in self._seen:
                self._seen.add(each.id)
                yield each.id


def _none_is_whole(call: ResumeCall, store: Store, damaged: list[str]) -> ObjectCorrupt:
    return ObjectCorrupt(
        kind=f"history of {len(damaged)} checkpoint(s) of job",
        name=call.job,
        reason=f"none is whole: {'; '.join(damaged[:_NAMED_MAX])}"
        + (" …" if len(damaged) > _NAMED_MAX else ""),
        remedy=f"Look with 'ckpt verify' what can be mended in the store {store.place}. To begin anew, start {call.job} "
        "without --resume, or remove what is damaged with 'ckpt rm'.",
    )
