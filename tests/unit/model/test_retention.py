"""Retention: what a policy keeps, and that no clock and no order makes it lose the newest."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest
from fakes.checkpoints import a_checkpoint
from hypothesis import given
from hypothesis import strategies as st

from ckpt.errors import Usage
from ckpt.model.reports import StoredCheckpoint
from ckpt.model.retention import RetentionPolicy, decide
from ckpt.units import SECOND, ByteCount, CheckpointId, JobName, Nanoseconds, Tag

TEMPLATE = a_checkpoint()
MINUTE = 60 * SECOND
NOON = int(datetime(2026, 11, 25, 12, tzinfo=UTC).timestamp()) * SECOND


def stored(
    number: int, created_ns: int, job: str | None = "web", tags: tuple[str, ...] = ()
) -> StoredCheckpoint:
    return StoredCheckpoint(
        id=CheckpointId(f"{number:064x}"),
        checkpoint=replace(
            TEMPLATE, job=None if job is None else JobName(job), created_ns=Nanoseconds(created_ns)
        ),
        tags=tuple(map(Tag, tags)),
        stored_bytes=ByteCount(1),
    )


def reasons(checkpoints: list[StoredCheckpoint], **policy: int) -> dict[int, tuple[str, ...]]:
    """From the number of each checkpoint that is kept to the reasons."""
    decisions = decide(checkpoints, RetentionPolicy(**policy))
    return {int(each.checkpoint.id, 16): each.reasons for each in decisions if each.is_kept}


# Few instants and jobs, so that they are often equal: around noon, around the epoch, and the last that an
# int64 can say.
instants = st.one_of(
    st.integers(-400, 400).map(lambda quarter: NOON + quarter * 15 * MINUTE),
    st.integers(-3, 3),
    st.sampled_from([-(2**63), 2**63 - 1]),
)
drafts = st.tuples(
    instants,
    st.sampled_from(["web", "db", None]),
    st.sets(st.sampled_from(["gold", "v1"])).map(sorted).map(tuple),
)
many = st.lists(drafts, max_size=30).map(
    lambda found: [stored(number, *draft) for number, draft in enumerate(found)]
)
counts = st.integers(0, 4)
numbers = st.tuples(counts, counts, counts, counts)


def policy_of(found: tuple[int, int, int, int]) -> RetentionPolicy:
    last, hourly, daily, weekly = found
    return RetentionPolicy(keep_last=last, keep_hourly=hourly, keep_daily=daily, keep_weekly=weekly)


policies = numbers.filter(any).map(policy_of)


def kept(checkpoints: list[StoredCheckpoint], policy: RetentionPolicy) -> set[CheckpointId]:
    return {each.checkpoint.id for each in decide(checkpoints, policy) if each.is_kept}


def test_each_checkpoint_is_told_why_it_is_kept() -> None:
    checkpoints = [
        stored(1, NOON - 8 * 24 * 60 * MINUTE),
        stored(2, NOON - 24 * 60 * MINUTE),
        stored(3, NOON - 60 * MINUTE),
        stored(4, NOON + 1 * MINUTE),
        stored(5, NOON + 2 * MINUTE),
    ]
    assert reasons(checkpoints, keep_last=1, keep_hourly=2, keep_daily=2, keep_weekly=2) == {
        1: ("weekly 2026-W47",),
        2: ("daily 2026-11-24",),
        3: ("hourly 2026-11-25T11",),
        5: ("last 1", "hourly 2026-11-25T12", "daily 2026-11-25", "weekly 2026-W48"),
    }


def test_days_and_hours_are_those_of_utc_and_weeks_begin_on_monday() -> None:
    midnight = int(datetime(2027, 1, 4, tzinfo=UTC).timestamp()) * SECOND  # a Monday
    checkpoints = [stored(1, midnight - 1), stored(2, midnight)]
    assert reasons(checkpoints, keep_weekly=2) == {1: ("weekly 2026-W53",), 2: ("weekly 2027-W01",)}
    assert reasons(checkpoints, keep_daily=2) == {1: ("daily 2027-01-03",), 2: ("daily 2027-01-04",)}
    assert reasons(checkpoints, keep_hourly=2) == {
        1: ("hourly 2027-01-03T23",),
        2: ("hourly 2027-01-04T00",),
    }


def test_a_day_without_checkpoints_does_not_count() -> None:
    year = 365 * 24 * 60 * MINUTE
    checkpoints = [stored(1, NOON - 2 * year), stored(2, NOON - year), stored(3, NOON)]
    assert set(reasons(checkpoints, keep_daily=2)) == {2, 3}


def test_the_jobs_are_judged_apart_and_those_without_a_job_together() -> None:
    checkpoints = [stored(1, 1, "web"), stored(2, 2, "db"), stored(3, 3, None), stored(4, 4, None)]
    assert reasons(checkpoints, keep_last=1) == {1: ("last 1",), 2: ("last 1",), 4: ("last 1",)}


def test_a_tagged_checkpoint_is_kept_and_does_not_count() -> None:
    checkpoints = [stored(1, 1), stored(2, 2), stored(3, 3, tags=("v1", "gold"))]
    assert reasons(checkpoints, keep_last=1) == {2: ("last 1",), 3: ("tagged gold", "tagged v1")}


@pytest.mark.parametrize("policy", [{}, {"keep_last": 0}, {"keep_daily": -1, "keep_last": 1}])
def test_a_policy_that_keeps_nothing_is_wrong_usage(policy: dict[str, int]) -> None:
    with pytest.raises(Usage):
        RetentionPolicy(**policy)


@given(many, policies)
def test_every_checkpoint_is_decided_once_oldest_first(
    checkpoints: list[StoredCheckpoint], policy: RetentionPolicy
) -> None:
    decided = [each.checkpoint for each in decide(checkpoints, policy)]
    assert decided == sorted(checkpoints, key=lambda each: (each.checkpoint.created_ns, each.id))


@given(many, st.integers(1, 40))
def test_keep_last_keeps_that_many_of_each_job_beside_the_tagged(
    checkpoints: list[StoredCheckpoint], number: int
) -> None:
    found = kept(checkpoints, RetentionPolicy(keep_last=number))
    for job in ("web", "db", None):
        of_job = [each for each in checkpoints if each.checkpoint.job == job]
        untagged = [each for each in of_job if not each.tags]
        assert sum(each.id in found for each in untagged) == min(number, len(untagged))
        assert all(each.id in found for each in of_job if each.tags)


@given(many, policies)
def test_whatever_the_clock_said_the_newest_of_each_job_is_kept(
    checkpoints: list[StoredCheckpoint], policy: RetentionPolicy
) -> None:
    found = kept(checkpoints, policy)
    # The later one wins: this is the order of the store, and what JOB@latest names.
    newest = {
        each.checkpoint.job: each.id
        for each in sorted(checkpoints, key=lambda each: (each.checkpoint.created_ns, each.id))
    }
    assert set(newest.values()) <= found


@given(many, numbers.filter(any), numbers)
def test_a_more_generous_policy_keeps_no_less(
    checkpoints: list[StoredCheckpoint], strict: tuple[int, int, int, int], more: tuple[int, int, int, int]
) -> None:
    generous = (strict[0] + more[0], strict[1] + more[1], strict[2] + more[2], strict[3] + more[3])
    assert kept(checkpoints, policy_of(strict)) <= kept(checkpoints, policy_of(generous))


@given(many, policies)
def test_each_rule_keeps_one_of_a_period_and_no_more_periods_than_it_says(
    checkpoints: list[StoredCheckpoint], policy: RetentionPolicy
) -> None:
    limits = {
        "last": policy.keep_last,
        "hourly": policy.keep_hourly,
        "daily": policy.keep_daily,
        "weekly": policy.keep_weekly,
    }
    for job in ("web", "db", None):
        given_reasons = [
            reason
            for each in decide(checkpoints, policy)
            for reason in each.reasons
            if each.checkpoint.checkpoint.job == job and not each.checkpoint.tags
        ]
        assert len(given_reasons) == len(set(given_reasons))
        for rule, limit in limits.items():
            assert sum(reason.startswith(f"{rule} ") for reason in given_reasons) <= limit


@given(many, policies, st.randoms(use_true_random=False))
def test_the_order_of_the_input_does_not_matter(
    checkpoints: list[StoredCheckpoint], policy: RetentionPolicy, random: object
) -> None:
    shuffled = list(checkpoints)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert decide(shuffled, policy) == decide(checkpoints, policy)


@given(many, policies)
def test_to_prune_twice_removes_nothing_more(
    checkpoints: list[StoredCheckpoint], policy: RetentionPolicy
) -> None:
    left = [each.checkpoint for each in decide(checkpoints, policy) if each.is_kept]
    assert decide(left, policy) == tuple(each for each in decide(checkpoints, policy) if each.is_kept)


@given(many, policies, st.integers(0, 29))
def test_to_pin_a_checkpoint_never_costs_another(
    checkpoints: list[StoredCheckpoint], policy: RetentionPolicy, which: int
) -> None:
    pinned = [
        replace(each, tags=(*each.tags, Tag("pin"))) if number == which else each
        for number, each in enumerate(checkpoints)
    ]
    assert kept(checkpoints, policy) <= kept(pinned, policy)
