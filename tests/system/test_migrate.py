"""A workload moves between two hosts over real SSH: it is whole there, and nothing of it is left here."""

from __future__ import annotations

import pytest
from harness.command import Ckpt
from harness.traces import Traces
from real.migrating import MigrationBed

pytestmark = pytest.mark.system


@pytest.fixture
def bed(traces: Traces, ckpt: Ckpt) -> MigrationBed:
    return MigrationBed(traces, ckpt)


def test_a_counter_moves_and_misses_no_number(bed: MigrationBed) -> None:
    counter = bed.start_counter(bed.source)
    moved = bed.migrate(counter.job)
    print(moved)
    counter.await_more()
    bed.assert_one_copy(counter, bed.target)
    assert bed.leftovers(counter) == []
