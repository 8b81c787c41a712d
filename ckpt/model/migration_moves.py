"""The steps of a migration from state to state: what is said, what is written down, what an operator decides.

Rule: who is about to write a state down, or to follow a word, asks here first; what is not in these tables is refused.
Source: the rules P1 to P6 of migration.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Final

from ckpt.errors import WrongState
from ckpt.model.migration import SourceState, TargetState


class Word(StrEnum):
    """What the source says to the target and what changes the target's state."""

    OFFER = "offer"
    PREPARE = "prepare"
    COMMIT = "commit"
    ABORT = "abort"
    FORGET = "forget"


class Choice(StrEnum):
    """An operator's own decision, where the other host is gone for ever."""

    COMMIT = "commit"
    ABORT = "abort"


def heard(
    target: TargetState | None, word: Word, *, attempt: int = 1, known_attempt: int = 0
) -> TargetState | None:
    """The state that the target goes to when the source says the word; None: nothing is kept here.

    Args:
        target: The target's durable state.
        word: What the source says.
        attempt: The number of the attempt that an Offer is for.
        known_attempt: The number in the target's record; 0 without one.

    Raises:
        WrongState: the word cannot be followed in this state, or the offer is late; nothing changes.
    """
    moves = _HEARD[word]
    if target not in moves:
        raise WrongState(
            subject="The migration",
            state=target or "unknown here",
            operation=f"'{word}'",
            needed=" or ".join(state or "unknown" for state in moves),
            remedy="Run 'ckpt recover' on the source: it asks both sides and goes on from there.",
        )
    if word is Word.OFFER and attempt <= known_attempt:
        raise WrongState(
            subject="The migration",
            state=f"at attempt {known_attempt}",
            operation=f"the offer of attempt {attempt}",
            needed="at an earlier one",
            remedy="It came late, over a connection that has ended: nothing is to be done.",
        )
    return moves[target]


def check_source_move(before: SourceState | None, after: SourceState) -> None:
    """Do nothing if a source may go from the one state to the other, or stays where it is.

    Raises:
        WrongState: it may not.
    """
    if after is not before and after not in SOURCE_MOVES[before]:
        raise _no_move(before, after)


def check_target_move(before: TargetState | None, after: TargetState) -> None:
    """Do nothing if a target may go from the one state to the other, or stays where it is.

    Raises:
        WrongState: it may not.
    """
    if after is not before and after not in TARGET_MOVES[before]:
        raise _no_move(before, after)


def decide_source(source: SourceState, choice: Choice) -> SourceState:
    """The state of a source whose target is gone for ever, as its operator decides; its record may then be removed.

    Raises:
        WrongState: it is not for this side to choose, or too late.
    """
    found = _SOURCE_CHOICES[choice].get(source)
    if found is None:
        raise WrongState(
            subject="The migration",
            state=source,
            operation=f"deciding '{choice}' on the source",
            needed=" or ".join(_SOURCE_CHOICES[choice]),
            remedy="The workload runs here: decide 'abort' here, or 'commit' on the target if it is lost here."
            if choice is Choice.COMMIT
            else "The source has committed: only the target can run the workload; look there.",
        )
    return found


def decide_target(target: TargetState, choice: Choice) -> TargetState:
    """The state of a target whose source is gone for ever, as its operator decides.

    Raises:
        WrongState: nothing whole is here that could run, or it was let go already.
    """
    found = _TARGET_CHOICES[choice].get(target)
    if found is None:
        raise WrongState(
            subject="The migration",
            state=target,
            operation=f"deciding '{choice}' on the target",
            needed=" or ".join(_TARGET_CHOICES[choice]),
            remedy="What came is not complete: only 'abort' is left."
            if choice is Choice.COMMIT
            else "It is too late: stop the job if it is not wanted.",
        )
    return found


def _no_move(before: StrEnum | None, after: StrEnum) -> WrongState:
    return WrongState(
        subject="The migration",
        state=before or "not begun",
        operation=f"going to '{after}'",
        needed="in a state that leads there",
        remedy="Run 'ckpt recover': it asks both sides and goes on from there.",
    )


SOURCE_MOVES: Final[Mapping[SourceState | None, frozenset[SourceState]]] = {
    None: frozenset({SourceState.PREPARING}),
    SourceState.PREPARING: frozenset({SourceState.TRANSFERRING, SourceState.ABORTED}),
    SourceState.TRANSFERRING: frozenset({SourceState.FROZEN, SourceState.ABORTED}),
    # Thawed again, it may go on transferring; only what is frozen is committed.
    SourceState.FROZEN: frozenset({SourceState.COMMITTED, SourceState.TRANSFERRING, SourceState.ABORTED}),
    SourceState.COMMITTED: frozenset({SourceState.FINISHED}),
    SourceState.FINISHED: frozenset(),
    SourceState.ABORTED: frozenset(),
}
"""Where a source may go from each state; its record goes away from FINISHED, from ABORTED, or by a resolution."""

TARGET_MOVES: Final[Mapping[TargetState | None, frozenset[TargetState]]] = {
    None: frozenset({TargetState.RECEIVING}),
    TargetState.RECEIVING: frozenset({TargetState.HELD, TargetState.ABORTED}),
    # COMMITTED may be left out where the tasks are held already: RUNNING says more, and is one sync less.
    TargetState.HELD: frozenset(
        {TargetState.COMMITTED, TargetState.RUNNING, TargetState.RECEIVING, TargetState.ABORTED}
    ),
    TargetState.COMMITTED: frozenset({TargetState.RUNNING}),
    TargetState.RUNNING: frozenset(),
    TargetState.ABORTED: frozenset({TargetState.RECEIVING}),
}
"""Where a target may go from each state; its record goes away from RUNNING by Forget, and from ABORTED."""

_HEARD: Final[Mapping[Word, Mapping[TargetState | None, TargetState | None]]] = {
    Word.OFFER: {
        None: TargetState.RECEIVING,
        TargetState.RECEIVING: TargetState.RECEIVING,
        # The source's copy has run on: what is held is of the past, its pages are a beginning.
        TargetState.HELD: TargetState.RECEIVING,
        TargetState.ABORTED: TargetState.RECEIVING,
    },
    Word.PREPARE: {TargetState.RECEIVING: TargetState.HELD},
    Word.COMMIT: {
        TargetState.HELD: TargetState.COMMITTED,
        TargetState.COMMITTED: TargetState.COMMITTED,
        TargetState.RUNNING: TargetState.RUNNING,
    },
    Word.ABORT: {
        None: None,
        TargetState.RECEIVING: TargetState.ABORTED,
        TargetState.HELD: TargetState.ABORTED,
        TargetState.ABORTED: TargetState.ABORTED,
    },
    Word.FORGET: {
        None: None,
        TargetState.RECEIVING: None,
        TargetState.RUNNING: None,
        TargetState.ABORTED: None,
    },
}

_SOURCE_CHOICES: Final[Mapping[Choice, Mapping[SourceState, SourceState]]] = {
    Choice.COMMIT: {
        SourceState.COMMITTED: SourceState.FINISHED,
        SourceState.FINISHED: SourceState.FINISHED,
    },
    Choice.ABORT: {
        SourceState.PREPARING: SourceState.ABORTED,
        SourceState.TRANSFERRING: SourceState.ABORTED,
        SourceState.FROZEN: SourceState.ABORTED,
        SourceState.ABORTED: SourceState.ABORTED,
    },
}
_TARGET_CHOICES: Final[Mapping[Choice, Mapping[TargetState, TargetState]]] = {
    Choice.COMMIT: {
        TargetState.HELD: TargetState.COMMITTED,
        TargetState.COMMITTED: TargetState.COMMITTED,
        TargetState.RUNNING: TargetState.RUNNING,
    },
    Choice.ABORT: {
        TargetState.RECEIVING: TargetState.ABORTED,
        TargetState.HELD: TargetState.ABORTED,
        TargetState.ABORTED: TargetState.ABORTED,
    },
}
