"""Every step of a migration fails once: afterwards the workload lives on exactly one host, and nothing is left half done."""

from __future__ import annotations

import pytest
from fakes.moving import InjectedError, Moving, migrate_call, moving

from ckpt.errors import CannotMigrate, CkptError, CommitUndelivered, PeerRefused, TransferBroken, UndoError
from ckpt.flow.migrate import migrate
from ckpt.model.findings import Finding, Severity
from ckpt.model.migration import SourceState


def steps_of() -> list[str]:
    one = moving()
    migrate(migrate_call(), one.ports)
    return list(dict.fromkeys(step for step in one.world.journal if step != "thaw"))


STEPS = steps_of()
WORDS = [step.removeprefix("say ") for step in STEPS if step.startswith("say ")]


def assert_one_copy(one: Moving) -> None:
    """It runs here, not frozen, or it has ended here and is held or runs there, and the record says so."""
    if one.records.state.has_committed:
        assert not one.world.alive or one.world.frozen
        assert one.there.held or one.there.running or not one.records.is_there
    else:
        assert one.world.alive
        assert not one.world.frozen
        assert not one.there.running
        assert not one.world.network_detached
    assert not one.world.gathered
    assert one.world.criu_running == 0
    assert all(not memory.is_open for memory in one.senders.memories)


def test_memory_goes_in_rounds_and_the_source_is_killed_between_the_commit_and_its_word() -> None:
    one = moving()
    report = migrate(migrate_call(), one.ports)
    journal = one.world.journal
    order = [
        *(
            "say judge",
            "begin the record",
            "say offer",
            "record transferring",
            "say round 0",
            "record frozen",
        ),
        *("freeze", "dump 100", "dump 200", "send the last memory", "send the last files", "say prepare"),
        *("detach the network", "record committed", "kill", "say commit", "mark the job", "record finished"),
        *("say forget", "remove the record"),
    ]
    assert (
        [step for step in journal if step in order]
        == [
            *order[: order.index("send the last memory")],
            *("send the last memory", "send the last memory"),  # one for each tree
            *order[order.index("send the last files") :],
        ]
    )
    assert "thaw" not in journal[: journal.index("kill")]
    # After the second one nothing is left to send.
    assert [each.changed_pages for each in report.rounds] == [100_000, 10_000, 6]
    assert [each.changed_pages for each in one.rounds] == [100_000, 10_000, 6]
    assert one.there.running
    assert one.jobs.migrated_to == "there"
    assert one.world.operations == 0
    assert report.downtime_ns > report.restore_ns


@pytest.mark.parametrize("step", STEPS)
def test_a_failing_step_leaves_exactly_one_copy(step: str) -> None:
    one = moving(fail_at=step)
    with pytest.raises((InjectedError, UndoError, CkptError)):
        migrate(migrate_call(), one.ports)
    assert_one_copy(one)
    if "record committed" not in one.world.journal:
        assert not one.there.received or step in {"say offer", "say abort"}
        assert one.world.operations == 0


@pytest.mark.parametrize("word", WORDS)
def test_a_lost_word_leaves_exactly_one_copy_and_says_how_to_go_on(word: str) -> None:
    one = moving(lost_at=word)
    if word == "forget":
        report = migrate(migrate_call(), one.ports)
        assert any("'ckpt recover'" in warning for warning in report.warnings)
    else:
        with pytest.raises(CkptError) as raised:
            migrate(migrate_call(), one.ports)
        if word == "commit":
            assert isinstance(raised.value, CommitUndelivered)
        elif word not in {"judge", "offer"}:
            assert isinstance(raised.value, TransferBroken)
            assert one.records.id in raised.value.advice
            assert one.records.state is SourceState.TRANSFERRING
    assert_one_copy(one)


@pytest.mark.parametrize("word", ["offer", "round 0", "prepare"])
def test_what_the_other_host_refuses_runs_on_here_and_is_dropped_there(word: str) -> None:
    one = moving(refused_at=word)
    with pytest.raises(PeerRefused):
        migrate(migrate_call(), one.ports)
    assert_one_copy(one)
    assert one.world.journal[-2:] == ["say abort", "remove the record"]
    assert not one.records.is_there
    assert not one.there.received


def test_after_a_refused_commit_it_stands_still_there_and_the_record_stays() -> None:
    one = moving(refused_at="commit")
    with pytest.raises(CkptError):
        migrate(migrate_call(), one.ports)
    assert not one.world.alive
    assert one.there.held
    assert one.records.is_there
    assert one.records.state is SourceState.COMMITTED


def test_rounds_end_where_they_no_longer_pay_or_where_the_user_says() -> None:
    busy = moving()
    busy.senders.changing = [100_000] * 20
    report = migrate(migrate_call(), busy.ports)
    assert len(report.rounds) - 1 == 1
    for wanted in (0, 1):
        one = moving()
        assert len(migrate(migrate_call(pre_copy=wanted), one.ports).rounds) == wanted + 1


def test_a_blocker_on_either_side_touches_nothing_unless_it_is_allowed() -> None:
    finding = Finding(
        rule="port-taken",
        severity=Severity.BLOCKER,
        pid=None,
        name="",
        subject="tcp 0.0.0.0:80",
        message="the port 80 is taken",
        remedy="Let it go.",
        option="",
    )
    one = moving(findings=(finding,))
    with pytest.raises(CannotMigrate, match="port 80"):
        migrate(migrate_call(), one.ports)
    assert "begin the record" not in one.world.journal
    assert "say offer" not in one.world.journal
    allowed = moving(findings=(finding,))
    migrate(migrate_call(allow=("port-taken",)), allowed.ports)
    assert allowed.there.running
