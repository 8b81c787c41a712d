"""What users are told of migrations that cannot be, and of those that wait for somebody."""

from __future__ import annotations

import subprocess

import pytest
from harness.command import Ckpt
from harness.terminal import Terminal
from harness.traces import Traces
from real.counting import Counter
from real.migrating import MigrationBed

pytestmark = pytest.mark.system

REFUSED, HAS_PROBLEMS = 31, 3


@pytest.fixture
def bed(traces: Traces, ckpt: Ckpt) -> MigrationBed:
    return MigrationBed(traces, ckpt)


@pytest.fixture
def counter(bed: MigrationBed) -> Counter:
    return bed.start_counter(bed.source)


def test_a_workload_cannot_be_moved_to_the_host_that_it_is_on(bed: MigrationBed, counter: Counter) -> None:
    here = (counter.job, bed.address_of(bed.source), *bed.options(bed.source))
    refused = bed.source.ckpt(bed.ckpt, "migrate", *here, exit_code=REFUSED)["error"]
    assert "name another one" in refused["message"]
    allowed = ("--allow", "job-runs", "--allow", "pid-taken")
    # Without a wait for the lock that it has itself.
    refused = bed.source.ckpt(bed.ckpt, "migrate", *here, *allowed, exit_code=REFUSED, timeout_s=15)["error"]
    assert "this very host" in refused["message"]
    assert bed.recover(bed.source) == {"actions": [], "problems": []}
    bed.assert_one_copy(counter, bed.source)
    bed.await_nothing_left(counter)


def test_who_holds_a_workload_in_doubt_is_told_who_knows(bed: MigrationBed, counter: Counter) -> None:
    bed.start_migration(counter.job, failpoint="held:SIGKILL").wait()
    bed.await_no_agent(bed.target)
    environ = bed.target.environ(bed.ckpt)
    told = bed.target.run(*bed.ckpt.command_line("recover"), environ=environ)
    assert told.returncode == HAS_PROBLEMS
    assert "run 'ckpt recover' on the source" in told.stderr
    (problem,) = bed.recover(bed.target, exit_code=HAS_PROBLEMS)["problems"]
    assert "--decide ID=commit|abort" in problem["hint"]
    bed.recover(bed.source)
    bed.assert_one_copy(counter, bed.source)
    bed.await_nothing_left(counter)


def test_the_bar_tells_the_rounds_and_goes_before_the_summary(bed: MigrationBed, counter: Counter) -> None:
    terminal = Terminal()
    line = bed.ckpt.command_line("migrate", counter.job, bed.address_of(bed.target), *bed.options(bed.target))
    environ = bed.source.environ(bed.ckpt) | {"TERM": "xterm"}
    environ.pop("NO_COLOR", None)
    with subprocess.Popen(
        bed.source.command_line(*line),
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=terminal.program,
        stderr=terminal.program,
    ) as program:
        terminal.await_text("frozen: ")
        assert program.wait() == 0
    terminal.finish()
    assert "connecting to" in terminal.written
    lines, shows_cursor = terminal.screen()
    assert shows_cursor
    assert lines[0].startswith(f"{counter.job} runs on {bed.address_of(bed.target)}: pid ")
    assert [each.split(":")[0].strip() for each in lines[1:]] == [
        *(f"round {number}" for number in range(len(lines) - 2)),
        "frozen",
    ]
