"""kill -9 of either side at every step of a migration: one copy lives on, whole, and recovery leaves nothing."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from real.faulty_migration import FaultyMigration, Settling
from real.shared_bed import SharedBed

pytestmark = pytest.mark.system

BEFORE = ["offered", "round-0", "freezing", "frozen", "written", "compared", "sent", "held"]
COMMITTED = ["committed", "killed", "running"]
TARGET_HELD = ["held", "committed", "killed"]
"""Steps of the source at which the target is held."""

KILLED = 137
PEER_FAILED = 53


@pytest.fixture(scope="module")
def shared(criu: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedBed]:
    shared = SharedBed(lambda: tmp_path_factory.mktemp("bed"))
    yield shared
    shared.close()


@pytest.fixture
def migration(shared: SharedBed) -> Iterator[FaultyMigration]:
    bed = shared.take()
    migration = FaultyMigration(bed, bed.start_counter(bed.source))
    yield migration
    migration.close()
    shared.give_back(migration.counter)


@pytest.mark.parametrize(
    ("phase", "how"),
    [
        *zip(BEFORE, itertools.cycle([Settling.TARGET, Settling.SOURCE])),
        ("held", Settling.TARGET),
        *itertools.product(COMMITTED, [Settling.SOURCE, Settling.TARGET]),
    ],
)
def test_the_controller_is_killed(phase: str, how: Settling, migration: FaultyMigration) -> None:
    bed = migration.bed
    migration.start(failpoint=phase)
    migration.must_end(KILLED)
    if phase in BEFORE:
        migration.must_run_on(bed.source)
    migration.settle(how, in_doubt=phase in TARGET_HELD)
    migration.must_be_alone(bed.target if phase in COMMITTED else bed.source)


@pytest.mark.parametrize("phase", ["offered", "held", "killed", "running"])
def test_the_controller_is_killed_and_another_one_resumes(phase: str, migration: FaultyMigration) -> None:
    migration.start(failpoint=phase)
    migration.must_end(KILLED)
    migration.settle(Settling.RESUME, in_doubt=False)
    migration.must_be_alone(migration.bed.target)


@pytest.mark.parametrize(
    ("phase", "how"),
    [
        ("offered", Settling.TARGET),
        ("round-0", Settling.RESUME),
        ("frozen", Settling.SOURCE),
        ("sent", Settling.RESUME),
        ("held", Settling.TARGET),
        ("committed", Settling.RESUME),
        ("killed", Settling.TARGET),
        ("running", Settling.TARGET),
    ],
)
def test_the_agent_is_killed_while_the_source_is_here(
    phase: str, how: Settling, migration: FaultyMigration
) -> None:
    bed = migration.bed
    here = migration.stop_at(phase)
    bed.kill_agent(bed.target)
    here.go_on()
    # Having heard that all is held there the source commits, without another word.
    is_committed = phase in {"held", *COMMITTED}
    if phase == "running":
        migration.must_end(0)
    else:
        migration.must_end(PEER_FAILED, "commit-undelivered" if is_committed else "transfer-broken")
    if not is_committed:
        migration.must_run_on(bed.source)
    migration.settle(how, in_doubt=is_committed and phase != "running")
    migration.must_be_alone(bed.target if is_committed or how is Settling.RESUME else bed.source)


@pytest.mark.parametrize(
    ("phase", "how"),
    [
        ("fetched", Settling.SOURCE),
        ("restored", Settling.TARGET),
        ("kept", Settling.RESUME),
        ("filed", Settling.TARGET),
        ("filed", Settling.RESUME),
        ("let-go", Settling.SOURCE),
        ("let-go", Settling.TARGET),
        ("let-go", Settling.RESUME),
    ],
)
def test_the_agent_is_killed_as_it_restores(phase: str, how: Settling, migration: FaultyMigration) -> None:
    bed = migration.bed
    is_committed = phase in {"filed", "let-go"}
    migration.start(agent_failpoint=phase)
    migration.must_end(PEER_FAILED, "commit-undelivered" if is_committed else "transfer-broken")
    if phase == "let-go":
        migration.must_run_on(bed.target)
    migration.settle(how, in_doubt=phase == "filed")
    migration.must_be_alone(bed.target if is_committed or how is Settling.RESUME else bed.source)


@pytest.mark.parametrize("phase", ["sent", "killed"])
def test_both_are_killed(phase: str, migration: FaultyMigration) -> None:
    bed = migration.bed
    here = migration.stop_at(phase)
    (agent,) = bed.agents(bed.target)
    os.kill(agent, signal.SIGKILL)
    here.kill()
    migration.must_end(KILLED)
    migration.settle(Settling.TARGET, in_doubt=phase in TARGET_HELD)
    migration.must_be_alone(bed.target if phase in COMMITTED else bed.source)
