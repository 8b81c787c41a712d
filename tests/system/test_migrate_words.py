"""What users are told of migrations that cannot be, and of those that wait for somebody."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from harness.command import Ckpt
from harness.terminal import Terminal
from harness.traces import Traces
from harness.waiting import await_condition
from real.counting import Counter
from real.migrating import ADDRESSES, MigrationBed

pytestmark = pytest.mark.system

REFUSED, SAYS_NO, HAS_PROBLEMS = 31, 30, 3


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


CONNECTION = """
import socket, sys, time
listening = socket.create_server((sys.argv[1], 0))
ends = socket.create_connection(listening.getsockname()), listening.accept()
listening.close()
open(sys.argv[2], "w").close()
time.sleep(1000)
"""


def test_a_connection_whose_address_the_other_host_lacks_is_told_of_beforehand(
    bed: MigrationBed, tmp_path: Path
) -> None:
    there = (bed.address_of(bed.target), *bed.options(bed.target))
    for address, option, rules in (
        ("127.0.0.1", "--tcp-established", set()),
        (ADDRESSES["source"], "--tcp-established", {"port-taken"}),
        (ADDRESSES["source"], "--tcp-close", set()),
    ):
        job, ready = bed.ckpt.new_job_name(), tmp_path / f"ready-{len(list(tmp_path.iterdir()))}"
        command = (sys.executable, "-I", "-S", "-c", CONNECTION, address, ready)
        bed.source.ckpt(bed.ckpt, "run", "--detach", "--name", job, "--", *command)
        await_condition(ready.exists, "the connection")
        checked = bed.source.ckpt(
            bed.ckpt, "migrate", "--dry-run", job, option, *there, exit_code=SAYS_NO if rules else 0
        )
        assert {each["rule"] for each in checked["findings"] if each["severity"] == "blocker"} == rules
        assert all(address in each["message"] for each in checked["findings"] if each["rule"] in rules)


PEER = """
import socket, sys, time
def say(words):
    with open(sys.argv[1], "a") as log:
        print(words, file=log)
connection = socket.create_connection((sys.argv[2], 7344))
connection.sendall(b"here")
connection.recv(1)
say("connected")
try:
    connection.sendall(connection.recv(1) or b"x")
    say("nothing but an end")
except OSError as error:
    say(type(error).__name__)
time.sleep(1000)
"""
ACCEPTING = """
import socket, sys
listening = socket.create_server(("0.0.0.0", 7344))
connection, _ = listening.accept()
connection.sendall(connection.recv(4)[:1])
try:
    ended = connection.recv(1)
except ConnectionResetError:
    ended = b""
open(sys.argv[1], "wb").write(b"more" if ended else b"ended")
"""


def test_connections_that_may_be_closed_are_found_closed_on_the_other_host_and_by_their_peer(
    bed: MigrationBed, tmp_path: Path
) -> None:
    log, peer = tmp_path / "log", tmp_path / "peer"
    accepting = bed.client.start(sys.executable, "-I", "-S", "-c", ACCEPTING, peer, output="accepting")
    await_condition(lambda: ":1CB0" in bed.client.must_run("cat", "/proc/net/tcp"), "the peer")
    job = bed.ckpt.new_job_name()
    command = (sys.executable, "-I", "-S", "-c", PEER, log, ADDRESSES["client"])
    bed.source.ckpt(bed.ckpt, "run", "--detach", "--name", job, "--", *command)
    await_condition(lambda: log.exists() and log.read_text() == "connected\n", "the connection")
    there = (job, bed.address_of(bed.target), *bed.options(bed.target))
    refused = bed.source.ckpt(bed.ckpt, "migrate", *there, exit_code=REFUSED)["error"]
    assert "--tcp-close" in refused["message"]
    moved = bed.source.ckpt(bed.ckpt, "migrate", "--tcp-close", *there)
    assert moved["warnings"] == []
    await_condition(lambda: log.read_text() == "connected\nBrokenPipeError\n", log.read_text)
    assert accepting.wait(timeout=60) == 0
    assert peer.read_text() == "ended"


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
