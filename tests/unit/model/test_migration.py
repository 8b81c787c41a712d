"""The table of a migration's states: nothing is missing in it, and what must never be said is not in it."""

from __future__ import annotations

from itertools import product

import pytest

from ckpt.errors import WrongState
from ckpt.model.migration import (
    AloneSource,
    AloneTarget,
    Resolution,
    SourceCopy,
    SourceState,
    TargetState,
    alone_source,
    alone_target,
    resolve,
)
from ckpt.model.migration_moves import (
    Choice,
    Word,
    check_source_move,
    check_target_move,
    decide_source,
    decide_target,
    heard,
)

SOURCES = (None, *SourceState)
TARGETS = (None, *TargetState)
NOT_COMMITTED = tuple(state for state in SOURCES if state is None or not state.has_committed)


def test_every_pair_of_states_has_an_answer_and_every_answer_a_sentence() -> None:
    cases = product(SOURCES, TARGETS, SourceCopy, (False, True))
    found = {resolve(*sides, copy=copy, resuming=resuming) for *sides, copy, resuming in cases}
    assert found == set(Resolution)
    assert all(each.sentence for each in (*Resolution, *AloneSource, *AloneTarget))


def test_a_commit_is_delivered_only_where_the_source_has_committed_or_its_copy_is_no_more() -> None:
    for source, target in product(NOT_COMMITTED, TARGETS):
        assert resolve(source, target, resuming=True) is not Resolution.DELIVER_COMMIT
        assert resolve(source, target) is not Resolution.FINISH


def test_what_the_source_has_committed_is_never_taken_back() -> None:
    committed = (SourceState.COMMITTED, SourceState.FINISHED)
    for source, target, copy in product(committed, TARGETS, SourceCopy):
        assert resolve(source, target, copy=copy, resuming=True) not in (
            Resolution.ABORT,
            Resolution.CONTINUE,
            Resolution.LAST_COPY,
        )


def test_a_target_that_knows_nothing_of_what_was_committed_is_no_success() -> None:
    assert resolve(SourceState.COMMITTED, None) is Resolution.CONFLICT
    assert resolve(SourceState.FINISHED, None) is Resolution.FINISH


def test_a_transfer_goes_on_only_if_it_is_wanted_and_the_workload_runs() -> None:
    for source in (SourceState.PREPARING, SourceState.TRANSFERRING, SourceState.FROZEN):
        for target in (None, TargetState.RECEIVING, TargetState.HELD, TargetState.ABORTED):
            assert resolve(source, target, resuming=True) is Resolution.CONTINUE
            assert resolve(source, target) is Resolution.ABORT
            assert resolve(source, target, copy=SourceCopy.ENDED, resuming=True) is Resolution.ABORT
    assert resolve(SourceState.ABORTED, TargetState.RECEIVING, resuming=True) is Resolution.ABORT


@pytest.mark.parametrize("source", NOT_COMMITTED)
def test_the_only_copy_that_is_left_is_the_operators_to_decide(source: SourceState | None) -> None:
    assert resolve(source, TargetState.HELD, copy=SourceCopy.LOST) is Resolution.LAST_COPY
    assert resolve(source, TargetState.RECEIVING, copy=SourceCopy.LOST) is Resolution.ABORT
    # Who decided there while this host was down is followed; where the copy here runs, nobody is.
    assert resolve(source, TargetState.RUNNING, copy=SourceCopy.LOST) is Resolution.FINISH
    assert resolve(source, TargetState.RUNNING) is Resolution.CONFLICT


def test_alone_nobody_decides_for_the_other() -> None:
    assert {
        state: alone_source(state) for state in SOURCES if alone_source(state) is AloneSource.KILL_REST
    } == {
        SourceState.COMMITTED: AloneSource.KILL_REST,
        SourceState.FINISHED: AloneSource.KILL_REST,
    }
    assert alone_target(TargetState.HELD) is AloneTarget.KEEP
    assert [state for state in TargetState if alone_target(state) is AloneTarget.RESTORE] == [
        TargetState.COMMITTED
    ]


def test_where_a_word_leads_the_target_may_go() -> None:
    for word, target in product(Word, TARGETS):
        try:
            after = heard(target, word)
        except WrongState:
            continue
        if after is not None:
            check_target_move(target, after)


@pytest.mark.parametrize(
    ("target", "word"),
    [
        (None, Word.COMMIT),
        (TargetState.RECEIVING, Word.COMMIT),
        (TargetState.ABORTED, Word.COMMIT),
        (TargetState.HELD, Word.PREPARE),
        (TargetState.COMMITTED, Word.OFFER),
        (TargetState.RUNNING, Word.OFFER),
        (TargetState.COMMITTED, Word.ABORT),
        (TargetState.RUNNING, Word.ABORT),
        (TargetState.HELD, Word.FORGET),
        (TargetState.COMMITTED, Word.FORGET),
    ],
)
def test_a_word_that_cannot_be_followed_is_refused(target: TargetState | None, word: Word) -> None:
    with pytest.raises(WrongState, match=word):
        heard(target, word)


def test_a_word_that_is_said_again_changes_nothing() -> None:
    assert heard(TargetState.RUNNING, Word.COMMIT) is TargetState.RUNNING
    assert heard(TargetState.ABORTED, Word.ABORT) is TargetState.ABORTED
    assert heard(None, Word.ABORT) is None
    assert heard(None, Word.FORGET) is None


def test_an_offer_of_an_earlier_attempt_is_late() -> None:
    assert heard(TargetState.HELD, Word.OFFER, attempt=3, known_attempt=2) is TargetState.RECEIVING
    with pytest.raises(WrongState, match="attempt 2"):
        heard(TargetState.HELD, Word.OFFER, attempt=2, known_attempt=2)


def test_only_what_is_frozen_is_committed_and_nothing_leads_back() -> None:
    before = [
        state
        for state in SOURCES
        if state is not SourceState.COMMITTED and _may(state, SourceState.COMMITTED)
    ]
    assert before == [SourceState.FROZEN]
    for state in (SourceState.COMMITTED, SourceState.FINISHED, SourceState.ABORTED):
        for after in (SourceState.TRANSFERRING, SourceState.FROZEN):
            with pytest.raises(WrongState):
                check_source_move(state, after)
    with pytest.raises(WrongState):
        check_target_move(TargetState.RUNNING, TargetState.HELD)


def _may(before: SourceState | None, after: SourceState) -> bool:
    try:
        check_source_move(before, after)
    except WrongState:
        return False
    return True


def test_an_operator_cannot_run_what_is_not_whole_nor_take_back_what_runs() -> None:
    assert decide_target(TargetState.HELD, Choice.COMMIT) is TargetState.COMMITTED
    assert decide_target(TargetState.HELD, Choice.ABORT) is TargetState.ABORTED
    assert decide_source(SourceState.FROZEN, Choice.ABORT) is SourceState.ABORTED
    assert decide_source(SourceState.COMMITTED, Choice.COMMIT) is SourceState.FINISHED
    for target, choice in ((TargetState.RECEIVING, Choice.COMMIT), (TargetState.COMMITTED, Choice.ABORT)):
        with pytest.raises(WrongState, match=f"deciding '{choice}' on the target"):
            decide_target(target, choice)
    for source, choice in ((SourceState.FROZEN, Choice.COMMIT), (SourceState.COMMITTED, Choice.ABORT)):
        with pytest.raises(WrongState, match=f"deciding '{choice}' on the source"):
            decide_source(source, choice)
