"""Migrations over a link that breaks, to a disk that is full, to a host that cannot restore, and with Ctrl-C."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness.lab import STORE
from real.faulty_migration import SILENCE_S, FaultyMigration, Settling, bytes_below
from real.migrating import MigrationBed
from real.shared_bed import SharedBed

pytestmark = pytest.mark.system

COMMITTED = {"committed", "killed", "running"}
PEER_FAILED, INTERRUPTED, NO_SPACE, KILLED = 53, 130, 14, 137
SMALL_BYTES = 1 << 20
BALLAST_BYTES = 24 << 20


@pytest.fixture(scope="module")
def shared(criu: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedBed]:
    shared = SharedBed(lambda: tmp_path_factory.mktemp("bed"))
    yield shared
    shared.close()


@pytest.fixture
def bed(shared: SharedBed) -> MigrationBed:
    return shared.take()


@pytest.fixture
def begin(shared: SharedBed, bed: MigrationBed) -> Iterator[Callable[[str], FaultyMigration]]:
    """Makes a counter on the source, whose program runs this first, and what moves it."""
    made: list[FaultyMigration] = []

    def make(prologue: str) -> FaultyMigration:
        made.append(FaultyMigration(bed, bed.start_counter(bed.source, prologue=prologue)))
        return made[-1]

    yield make
    for migration in made:
        migration.close()
    shared.give_back(*(migration.counter for migration in made))


@pytest.fixture
def migration(begin: Callable[[str], FaultyMigration]) -> FaultyMigration:
    return begin("")


@pytest.mark.parametrize(
    ("phase", "how"),
    [
        ("offered", Settling.TARGET),
        ("round-0", Settling.RESUME),
        ("compared", Settling.SOURCE),
        ("sent", Settling.TARGET),
        ("held", Settling.SOURCE),
        ("held", Settling.TARGET),
        ("committed", Settling.RESUME),
        ("running", Settling.SOURCE),
    ],
)
def test_what_the_source_says_is_lost(phase: str, how: Settling, migration: FaultyMigration) -> None:
    bed = migration.bed
    here = migration.stop_at(phase, silence_s=SILENCE_S)
    bed.link_down()
    here.go_on()
    is_committed = phase in {"held", *COMMITTED}
    if phase == "running":
        migration.must_end(0)
    else:
        migration.must_end(PEER_FAILED, "commit-undelivered" if is_committed else "transfer-broken")
    if not is_committed:
        migration.must_run_on(bed.source)
    bed.link_up()
    migration.settle(how, in_doubt=is_committed and phase != "running")
    migration.must_be_alone(bed.target if is_committed or how is Settling.RESUME else bed.source)


@pytest.mark.parametrize(
    ("phase", "how"),
    [
        ("restored", Settling.SOURCE),
        ("kept", Settling.TARGET),
        ("kept", Settling.RESUME),
        ("filed", Settling.SOURCE),
        ("let-go", Settling.TARGET),
        ("let-go", Settling.RESUME),
    ],
)
def test_what_the_target_says_is_lost(phase: str, how: Settling, migration: FaultyMigration) -> None:
    bed = migration.bed
    migration.start(agent_failpoint=f"{phase}:SIGSTOP", silence_s=SILENCE_S)
    agent = bed.await_agent_stopped(bed.target)
    bed.link_down()
    os.kill(agent, signal.SIGCONT)
    is_committed = phase in {"filed", "let-go"}
    migration.must_end(PEER_FAILED, "commit-undelivered" if is_committed else "transfer-broken")
    migration.must_run_on(bed.target if is_committed else bed.source)
    bed.link_up()
    # What is held is known to be in doubt; what runs, or was dropped, is not.
    migration.settle(how, in_doubt=not is_committed)
    migration.must_be_alone(bed.target if is_committed or how is Settling.RESUME else bed.source)


def test_recovery_without_the_other_host_does_what_may_be_done_alone(migration: FaultyMigration) -> None:
    bed = migration.bed
    here = migration.stop_at("killed", silence_s=SILENCE_S)
    bed.link_down()
    here.go_on()
    migration.must_end(PEER_FAILED, "commit-undelivered")
    bed.await_no_agent(bed.target)
    for host in bed.hosts:
        (problem,) = bed.recover(host, exit_code=3)["problems"]
        assert migration.id in problem["subject"] + problem["message"]
        assert bed.copies_alive(migration.counter).running == ()
    bed.link_up()
    migration.settle(Settling.SOURCE, in_doubt=True)
    migration.must_be_alone(bed.target)


@pytest.mark.parametrize("phase", ["offered", "sent"])
def test_the_disk_of_the_target_is_full(phase: str, migration: FaultyMigration) -> None:
    bed = migration.bed
    here = migration.stop_at(phase)
    with bed.full_state(bed.target):
        here.go_on()
        migration.must_end(PEER_FAILED, "peer-refused")
        migration.must_run_on(bed.source)
    migration.settle(Settling.SOURCE, in_doubt=False)
    migration.must_be_alone(bed.source)


@pytest.mark.parametrize(
    ("phase", "how"), [("kept", Settling.SOURCE), ("filed", Settling.TARGET), ("filed", Settling.RESUME)]
)
def test_the_disk_of_the_target_is_full_as_it_restores(
    phase: str, how: Settling, migration: FaultyMigration
) -> None:
    bed = migration.bed
    migration.start(agent_failpoint=f"{phase}:SIGSTOP")
    agent = bed.await_agent_stopped(bed.target)
    is_committed = phase == "filed"
    with bed.full_state(bed.target):
        os.kill(agent, signal.SIGCONT)
        migration.must_end(PEER_FAILED, "commit-undelivered" if is_committed else "peer-refused")
    migration.settle(how, in_doubt=is_committed)
    migration.must_be_alone(bed.target if is_committed else bed.source)


@pytest.mark.parametrize("phase", ["round-0", "held", "committed", "running"])
def test_the_disk_of_the_source_is_full(phase: str, migration: FaultyMigration) -> None:
    bed = migration.bed
    here = migration.stop_at(phase)
    with bed.full_state(bed.source):
        here.go_on()
        if phase in COMMITTED:
            told = " ".join(migration.must_end(0).document["warnings"])
            assert "ckpt recover" in told
        else:
            migration.must_end(NO_SPACE, "no-space")
    migration.settle(Settling.SOURCE, in_doubt=False)
    migration.must_be_alone(bed.target if phase in COMMITTED else bed.source)


def test_a_port_is_taken_on_the_target_meanwhile(begin: Callable[[str], FaultyMigration]) -> None:
    migration = begin(LISTEN)
    bed = migration.bed
    here = migration.stop_at("sent")
    other = bed.start_counter(bed.target, prologue=LISTEN)
    here.go_on()
    migration.must_end(PEER_FAILED, "peer-refused")
    bed.end(other)
    migration.must_be_alone(bed.source)
    bed.migrate(migration.counter.job)
    migration.must_be_alone(bed.target)


def test_a_file_is_removed_on_the_target_meanwhile(
    bed: MigrationBed, begin: Callable[[str], FaultyMigration]
) -> None:
    for host in bed.hosts:
        host.path(Path("/srv/needed")).write_text("the same on both\n")
    migration = begin("needed = open('/srv/needed')")
    here = migration.stop_at("sent")
    bed.target.path(Path("/srv/needed")).unlink()
    here.go_on()
    migration.must_end(PEER_FAILED, "peer-refused")
    migration.must_be_alone(bed.source)


def test_a_job_of_its_name_runs_on_the_target_meanwhile(migration: FaultyMigration) -> None:
    bed = migration.bed
    here = migration.stop_at("sent")
    bed.target.ckpt(bed.ckpt, "run", "--detach", "--name", migration.counter.job, "--", "sleep", "600")
    here.go_on()
    migration.must_end(PEER_FAILED, "peer-refused")
    bed.assert_one_copy(migration.counter, bed.source)
    assert bed.job_state(bed.target, migration.counter.job) == "running"
    bed.target.ckpt(bed.ckpt, "stop", migration.counter.job)
    migration.must_be_alone(bed.source)


@pytest.mark.parametrize("choice", ["commit", "abort"])
def test_an_operator_decides_where_the_source_is_gone_for_ever(
    choice: str, migration: FaultyMigration
) -> None:
    bed = migration.bed
    here = migration.stop_at("held")
    here.kill()
    migration.must_end(KILLED)
    migration.must_run_on(bed.source)
    bed.await_no_agent(bed.target)
    bed.end(migration.counter)
    (problem,) = bed.recover(bed.target, exit_code=3)["problems"]
    assert migration.id in problem["message"]
    # What the source's host did after the freeze is lost with it: here, its last counts.
    kept = migration.counter.last()
    bed.recover(bed.target, "--decide", f"{migration.id}={choice}")
    assert bed.migrations(bed.target) == []
    if choice == "commit":
        (runs,) = bed.copies_alive(migration.counter).running
        assert bed.host_of(runs) is bed.target
    else:
        assert bed.copies_alive(migration.counter).running == ()
        assert migration.counter.last() == kept
    # The host comes back after all: its workload is dead, and what it knows is out of date.
    bed.recover(bed.source)
    bed.await_nothing_left(migration.counter)


def test_there_and_back_ten_times_in_a_row(migration: FaultyMigration) -> None:
    bed, job = migration.bed, migration.counter.job
    sizes = []
    for _ in range(5):
        for source in bed.hosts:
            bed.migrate(job, source=source)
            migration.must_be_alone(bed.other(source))
        sizes.append([bytes_below(host.path(place)) for host in bed.hosts for place in (host.state, STORE)])
    assert max(max(each) for each in sizes) < SMALL_BYTES, sizes
    assert [bed.job_state(host, job) for host in bed.hosts] == ["running", "migrated"]


def test_a_resumed_transfer_does_not_send_again_what_is_there(
    begin: Callable[[str], FaultyMigration],
) -> None:
    migration = begin(f"import os; ballast = os.urandom({BALLAST_BYTES})")
    bed = migration.bed
    here = migration.stop_at("round-0")
    bed.kill_agent(bed.target)
    here.go_on()
    migration.must_end(PEER_FAILED, "transfer-broken")
    resumed = bed.resume(migration.id)
    migration.must_be_alone(bed.target)
    assert resumed["sent_bytes"] < BALLAST_BYTES / 2, resumed


def test_recovery_leaves_alone_what_has_come_back_meanwhile(migration: FaultyMigration) -> None:
    bed, counter = migration.bed, migration.counter
    migration.start(failpoint="running")
    migration.must_end(KILLED)
    bed.migrate(counter.job, source=bed.target)
    bed.assert_one_copy(counter, bed.source)
    bed.recover(bed.source)
    bed.recover(bed.target)
    migration.must_be_alone(bed.source)
    bed.source.ckpt(bed.ckpt, "stop", counter.job)
    assert bed.job_state(bed.source, counter.job) != "migrated"


@pytest.mark.parametrize(
    ("phase", "number"),
    [
        ("offered", "SIGINT"),
        ("round-0", "SIGTERM"),
        ("freezing", "SIGINT"),
        ("frozen", "SIGTERM"),
        ("written", "SIGINT"),
        ("compared", "SIGTERM"),
        ("sent", "SIGINT"),
        ("held", "SIGTERM"),
        ("committed", "SIGINT"),
        ("killed", "SIGTERM"),
        ("running", "SIGINT"),
    ],
)
def test_an_interruption_before_the_commit_undoes_it_and_a_later_one_does_not(
    phase: str, number: str, migration: FaultyMigration
) -> None:
    migration.start(failpoint=f"{phase}:{number}")
    if phase in COMMITTED:
        migration.must_end(0)
        migration.must_be_alone(migration.bed.target)
    else:
        migration.must_end(INTERRUPTED, "interrupted")
        migration.must_be_alone(migration.bed.source)


@pytest.mark.parametrize("phase", ["fetched", "kept", "filed", "let-go"])
def test_an_interruption_while_the_target_is_at_it(phase: str, migration: FaultyMigration) -> None:
    bed = migration.bed
    here = migration.start(agent_failpoint=f"{phase}:SIGSTOP")
    agent = bed.await_agent_stopped(bed.target)
    here.interrupt()
    os.kill(agent, signal.SIGCONT)
    if phase in {"filed", "let-go"}:
        migration.must_end(0)
        migration.must_be_alone(bed.target)
    else:
        migration.must_end(INTERRUPTED, "interrupted")
        migration.must_be_alone(bed.source)


def test_recovery_leaves_a_migration_alone_that_is_under_way(migration: FaultyMigration) -> None:
    bed = migration.bed
    here = migration.stop_at("held")
    for host in bed.hosts:
        assert bed.recover(host)["actions"] == []
    here.go_on()
    migration.must_end(0)
    migration.must_be_alone(bed.target)


def test_what_could_not_be_killed_after_the_commit_never_runs_again(migration: FaultyMigration) -> None:
    bed = migration.bed
    here = migration.start(failpoint="committed:SIGSTOP", agent_failpoint="filed:SIGSTOP")
    here.await_stopped()
    # Without room for its note the source does not kill; later all that it writes down finds room.
    with bed.full_state(bed.source):
        here.go_on()
        agent = bed.await_agent_stopped(bed.target)
    os.kill(agent, signal.SIGCONT)
    warnings = migration.must_end(0).document["warnings"]
    assert any("could not be ended" in each for each in warnings), warnings
    migration.must_run_on(bed.target)
    migration.settle(Settling.SOURCE, in_doubt=False)
    migration.must_be_alone(bed.target)


LISTEN = "import socket; listening = socket.create_server(('127.0.0.1', 7654))"
