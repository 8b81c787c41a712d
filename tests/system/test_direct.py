"""A migration leaves SSH for a connection of its own where it can, and goes through SSH where it cannot."""

from __future__ import annotations

import pytest
from harness.command import Ckpt
from harness.traces import Traces
from real.counting import PAGES, Counter
from real.faulty_migration import SILENCE_S, FaultyMigration
from real.firewall import Firewall
from real.migrating import MigrationBed

pytestmark = pytest.mark.system

MEMORY_BYTES = PAGES * 4096
PEER_FAILED = 53


@pytest.fixture
def bed(traces: Traces, ckpt: Ckpt) -> MigrationBed:
    return MigrationBed(traces, ckpt)


@pytest.fixture
def firewall(bed: MigrationBed) -> Firewall:
    return Firewall(bed.target)


@pytest.fixture
def counter(bed: MigrationBed) -> Counter:
    return bed.start_counter(bed.source)


def migrate(bed: MigrationBed, counter: Counter, *options: str) -> str:
    """Migrate it; gives what was told on the way."""
    ended = bed.start_migration(counter.job, "-v", *options).wait()
    assert ended.exit_code == 0, ended
    bed.assert_one_copy(counter, bed.target)
    bed.await_nothing_left(counter)
    return ended.errors


def test_the_memory_comes_beside_ssh(bed: MigrationBed, firewall: Firewall, counter: Counter) -> None:
    told = migrate(bed, counter)
    assert "over a direct connection, sealed with AES-256-GCM" in told
    by_ssh, beside = firewall.bytes_in()
    assert beside > MEMORY_BYTES // 2
    assert by_ssh < MEMORY_BYTES // 8


@pytest.mark.parametrize(("verdict", "reason"), [("reject", "refused"), ("drop", "no answer within 1.5 s")])
def test_where_a_firewall_lets_only_ssh_in_ssh_it_is(
    bed: MigrationBed, firewall: Firewall, counter: Counter, verdict: str, reason: str
) -> None:
    firewall.block(verdict)
    told = migrate(bed, counter)
    assert "everything goes through SSH" in told
    assert reason in told


def test_who_wants_ssh_only_gets_it_and_no_port_is_tried(
    bed: MigrationBed, firewall: Firewall, counter: Counter
) -> None:
    assert "direct connection" not in migrate(bed, counter, "--ssh-only")
    assert firewall.bytes_in()[1] == 0


def test_a_direct_connection_that_breaks_ends_the_transfer_which_goes_on_later_by_ssh(
    bed: MigrationBed, firewall: Firewall, counter: Counter
) -> None:
    migration = FaultyMigration(bed, counter)
    here = migration.stop_at("round-0", silence_s=SILENCE_S)
    firewall.block("drop")
    here.go_on()
    migration.must_end(PEER_FAILED, "transfer-broken")
    migration.must_run_on(bed.source)
    bed.await_no_agent(bed.target)
    bed.resume(migration.id)
    migration.must_be_alone(bed.target)
