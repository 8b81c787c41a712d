"""The commit protocol of a migration: its states, and how it goes on after a fault, alone or when both sides can be asked.

Rules:
  P1  The source decides. Its decision is one durable record, COMMITTED; without one it has not committed.
  P2  COMMITTED is durable before Commit is said, and never follows ABORTED; only what is frozen is committed.
  P3  A target that is HELD has promised: it keeps its images, and neither runs nor drops them unless it is told.
  P4  RUNNING is durable before the first step of the target's copy: what is not RUNNING has never run, and may be
      restored again; what is RUNNING is never restored again.
  P5  A target keeps its record until Forget, and the source its own until Forgotten: that nothing is known there of
      what was committed here is no success.
  P6  Each attempt to transfer has a higher number; an offer that is late is refused.
Source: two-phase commit with presumed abort, as in C. Mohan, B. Lindsay, R. Obermarck, "Transaction Management in
the R* Distributed Database Management System", 1986; decisions/0013 has the table and how it is checked. The steps
from state to state are in migration_moves.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Final, NewType

MigrationId = NewType("MigrationId", str)
"""16 lower-case hexadecimal digits, the same on both hosts."""


class SourceState(StrEnum):
    """What the source has written down. No record: it knows nothing of the migration, or no more."""

    PREPARING = "preparing"
    TRANSFERRING = "transferring"
    FROZEN = "frozen"
    COMMITTED = "committed"
    FINISHED = "finished"
    ABORTED = "aborted"

    @property
    def has_committed(self) -> bool:
        """Whether the source's copy must never run again."""
        return self in (SourceState.COMMITTED, SourceState.FINISHED)


class TargetState(StrEnum):
    """What the target has written down. No record: nothing of the migration is here."""

    RECEIVING = "receiving"
    HELD = "held"
    COMMITTED = "committed"
    RUNNING = "running"
    ABORTED = "aborted"


class SourceCopy(StrEnum):
    """What has become of the workload on a source that has not committed.

    ENDED: by itself or by its user, after it was thawed. LOST: with its host; nobody saw its end.
    """

    RUNS = "runs"
    ENDED = "ended"
    LOST = "lost"


class Resolution(StrEnum):
    """How a migration goes on when both sides can be asked."""

    ABORT = "abort"
    CONTINUE = "continue"
    DELIVER_COMMIT = "deliver-commit"
    FINISH = "finish"
    LAST_COPY = "last-copy"
    CONFLICT = "conflict"

    @property
    def sentence(self) -> str:
        """What it means, for people."""
        return _SENTENCES[self]


class AloneSource(StrEnum):
    """What a source does while the target cannot be asked."""

    RUN_ON = "run-on"
    KILL_REST = "kill-rest"

    @property
    def sentence(self) -> str:
        """What it means, for people."""
        return _SOURCE_SENTENCES[self]


class AloneTarget(StrEnum):
    """What a target does while the source cannot be asked."""

    DROP = "drop"
    KEEP = "keep"
    RESTORE = "restore"
    TIDY = "tidy"

    @property
    def sentence(self) -> str:
        """What it means, for people."""
        return _TARGET_SENTENCES[self]


def resolve(
    source: SourceState | None,
    target: TargetState | None,
    *,
    copy: SourceCopy = SourceCopy.RUNS,
    resuming: bool = False,
) -> Resolution:
    """How the migration goes on, by the durable states of both sides.

    Args:
        source: The source's.
        target: The target's.
        copy: What has become of the workload on the source; it counts only where the source has not committed.
        resuming: Whether the user wants the migration, and not just order.
    """
    if source is SourceState.COMMITTED:
        return _IF_COMMITTED[target]
    if source is SourceState.FINISHED:
        return _IF_FINISHED[target]
    if copy is SourceCopy.LOST:
        return _IF_LOST[target]
    if copy is SourceCopy.ENDED:
        return _IF_ENDED[target]
    if resuming and source in _MAY_GO_ON and _IF_RUNS[target] is Resolution.ABORT:
        return Resolution.CONTINUE
    return _IF_RUNS[target]


def alone_source(source: SourceState | None) -> AloneSource:
    """What the source does by itself with a workload that is frozen for the migration."""
    has_committed = source is not None and source.has_committed
    return AloneSource.KILL_REST if has_committed else AloneSource.RUN_ON


def alone_target(target: TargetState) -> AloneTarget:
    """What the target does by itself."""
    return _ALONE[target]


_MAY_GO_ON: Final = (SourceState.PREPARING, SourceState.TRANSFERRING, SourceState.FROZEN)

_IF_RUNS: Final[Mapping[TargetState | None, Resolution]] = {
    None: Resolution.ABORT,
    TargetState.RECEIVING: Resolution.ABORT,
    TargetState.HELD: Resolution.ABORT,
    TargetState.COMMITTED: Resolution.CONFLICT,
    TargetState.RUNNING: Resolution.CONFLICT,
    TargetState.ABORTED: Resolution.ABORT,
}
# A target can be past HELD without the source only by its operator's decision.
_IF_ENDED: Final[Mapping[TargetState | None, Resolution]] = {
    **_IF_RUNS,
    TargetState.COMMITTED: Resolution.DELIVER_COMMIT,
    TargetState.RUNNING: Resolution.FINISH,
}
_IF_LOST: Final[Mapping[TargetState | None, Resolution]] = {
    **_IF_ENDED,
    TargetState.HELD: Resolution.LAST_COPY,
}
_IF_COMMITTED: Final[Mapping[TargetState | None, Resolution]] = {
    None: Resolution.CONFLICT,
    TargetState.RECEIVING: Resolution.CONFLICT,
    TargetState.HELD: Resolution.DELIVER_COMMIT,
    TargetState.COMMITTED: Resolution.DELIVER_COMMIT,
    TargetState.RUNNING: Resolution.FINISH,
    TargetState.ABORTED: Resolution.CONFLICT,
}
# The target has forgotten; a late offer may have left something there again.
_IF_FINISHED: Final[Mapping[TargetState | None, Resolution]] = {
    None: Resolution.FINISH,
    TargetState.RECEIVING: Resolution.FINISH,
    TargetState.HELD: Resolution.CONFLICT,
    TargetState.COMMITTED: Resolution.CONFLICT,
    TargetState.RUNNING: Resolution.FINISH,
    TargetState.ABORTED: Resolution.FINISH,
}

_ALONE: Final[Mapping[TargetState, AloneTarget]] = {
    TargetState.RECEIVING: AloneTarget.DROP,
    TargetState.HELD: AloneTarget.KEEP,
    TargetState.COMMITTED: AloneTarget.RESTORE,
    TargetState.RUNNING: AloneTarget.TIDY,
    TargetState.ABORTED: AloneTarget.DROP,
}

_SENTENCES: Final[Mapping[Resolution, str]] = {
    Resolution.ABORT: "Nothing was committed: the workload stays on the source, and the target drops what it received.",
    Resolution.CONTINUE: "Nothing was committed: the workload runs on the source, and the transfer goes on.",
    Resolution.DELIVER_COMMIT: "The source has committed: the target lets the workload go, from its images if need be.",
    Resolution.FINISH: "The workload has gone on at the target: both sides remove what is left of the migration.",
    Resolution.LAST_COPY: "Nothing was committed, but the workload was lost with its host, and the target's images are"
    " the last copy: 'ckpt recover --decide ID=commit' there runs it as it was at the freeze, '=abort' drops it.",
    Resolution.CONFLICT: "The two records contradict each other: nothing was resumed or removed, and an operator must"
    " look at both hosts, first whether both use the state directory of the migration.",
}
_SOURCE_SENTENCES: Final[Mapping[AloneSource, str]] = {
    AloneSource.RUN_ON: "Nothing was committed: the workload runs on here.",
    AloneSource.KILL_REST: "The migration was committed: the workload is the target's, and what is left here is killed.",
}
_TARGET_SENTENCES: Final[Mapping[AloneTarget, str]] = {
    AloneTarget.DROP: "What was received is not complete, or was given up: it is removed.",
    AloneTarget.KEEP: "In doubt: only the source knows whether the workload may run here, so its images are kept; run"
    " 'ckpt recover' on the source, or, if that host is gone for ever, 'ckpt recover --decide ID=commit|abort' here.",
    AloneTarget.RESTORE: "The migration was committed: the workload is restored here from its images, and runs.",
    AloneTarget.TIDY: "The workload was let go here: its images are removed, the record stays until the source asks.",
}
