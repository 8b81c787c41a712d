"""The commit protocol, checked by visiting every state that crashes, power cuts and a broken wire can lead to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from harness.exploring import explore
from harness.migration_world import Law, World

from ckpt.model import migration, migration_moves
from ckpt.model.migration import AloneSource, AloneTarget, Resolution, TargetState

Patch = Callable[[pytest.MonkeyPatch], None]


def in_table(table: Any, key: Any, value: Any) -> Patch:
    return lambda patch: patch.setitem(table, key, value)


def runs_on_always(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(migration, "alone_source", lambda _state: AloneSource.RUN_ON)


def takes_late_offers(patch: pytest.MonkeyPatch) -> None:
    heard = migration_moves.heard
    patch.setattr(migration_moves, "heard", lambda target, word, **_attempts: heard(target, word))


@pytest.mark.parametrize(
    ("crashes", "breaks", "refusals"),
    [(2, 1, 1), (3, 0, 0), (1, 2, 0)],
)
def test_whatever_fails_one_copy_is_left_and_no_record(crashes: int, breaks: int, refusals: int) -> None:
    found = explore(World(crashes=crashes, breaks=breaks, refusals=refusals))
    assert found.wrong == "", "\n".join(found.trace)
    assert found.settled > 50
    assert found.states > 20_000


def test_without_a_fault_there_is_one_way_and_it_ends_on_the_target() -> None:
    found = explore(World())
    assert found.wrong == ""
    assert found.settled == 1


@pytest.mark.parametrize(
    ("mistake", "wrong"),
    [
        pytest.param(
            in_table(migration._IF_RUNS, TargetState.HELD, Resolution.DELIVER_COMMIT),
            "without a durable COMMITTED",
            id="the target's promise is taken for the decision",
        ),
        pytest.param(
            in_table(migration._IF_COMMITTED, TargetState.HELD, Resolution.ABORT),
            "takes back what it has committed",
            id="a decision is taken back",
        ),
        pytest.param(
            in_table(migration._IF_COMMITTED, TargetState.HELD, Resolution.FINISH),
            "conflict",
            id="a promise is taken for a run",
        ),
        pytest.param(
            in_table(migration._IF_LOST, TargetState.HELD, Resolution.ABORT),
            "no copy is left",
            id="the last copy is dropped",
        ),
        pytest.param(
            in_table(migration._IF_FINISHED, None, Resolution.CONFLICT),
            "conflict",
            id="a forgotten migration is a riddle",
        ),
        pytest.param(
            in_table(migration._ALONE, TargetState.HELD, AloneTarget.RESTORE),
            "without a durable COMMITTED",
            id="a held target runs by itself",
        ),
        pytest.param(
            in_table(migration._ALONE, TargetState.HELD, AloneTarget.DROP),
            "no copy is left",
            id="a held target drops by itself",
        ),
        pytest.param(
            in_table(migration._ALONE, TargetState.RUNNING, AloneTarget.RESTORE),
            "copy was started twice",
            id="what ran is restored again",
        ),
        pytest.param(
            in_table(migration._ALONE, TargetState.RUNNING, AloneTarget.DROP),
            "conflict",
            id="the target forgets before it is told to",
        ),
        pytest.param(
            in_table(migration_moves._HEARD[migration_moves.Word.ABORT], TargetState.HELD, None),
            "no settled state",
            id="an abort removes images before it is written down",
        ),
        pytest.param(runs_on_always, "the source runs after", id="a source that committed runs on"),
        pytest.param(takes_late_offers, "no copy is left", id="an offer that came late is taken"),
    ],
)
def test_a_mistake_in_the_table_is_found(monkeypatch: pytest.MonkeyPatch, mistake: Patch, wrong: str) -> None:
    mistake(monkeypatch)
    found = explore(World(crashes=1, breaks=1, refusals=1))
    assert wrong in found.wrong, found


@pytest.mark.parametrize(
    ("law", "wrong"),
    [
        (Law(syncs_what_it_reads=False), "without a durable COMMITTED"),
        (Law(guardian_asks_the_record=False), "the source runs after"),
        (Law(running_before_the_first_step=False), "started twice"),
        (Law(commit_is_durable_before_it_is_said=False), "without a durable COMMITTED"),
        (Law(skips_answers_to_former_words=False), "no settled state"),
    ],
    ids=[
        "what is read is not synced",
        "the guardian thaws without asking",
        "RUNNING is written after the first step",
        "Commit is said before COMMITTED is durable",
        "an answer to Prepare is taken for one to Abort",
    ],
)
def test_a_mistake_in_the_order_of_steps_is_found(law: Law, wrong: str) -> None:
    found = explore(World(crashes=1, breaks=1, refusals=1), law)
    assert wrong in found.wrong, found
