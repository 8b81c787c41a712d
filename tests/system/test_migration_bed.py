"""The bed of the migration tests sees what it must: a copy too many, a count too few, and what is left behind."""

from __future__ import annotations

import shutil
import subprocess
import time

import pytest
from harness.command import Ckpt
from harness.lab import STORE, Host
from harness.processes import cgroup_of
from harness.sshd import SERVER
from harness.traces import Traces
from harness.waiting import await_condition
from real.migrating import ADDRESSES, MigrationBed

pytestmark = pytest.mark.system


@pytest.fixture
def bed(traces: Traces, ckpt: Ckpt) -> MigrationBed:
    return MigrationBed(traces, ckpt)


def test_the_hosts_are_joined_and_differ_in_their_clocks(bed: MigrationBed) -> None:
    ahead_ns = bed.source.clock_ns(time.CLOCK_MONOTONIC) - bed.target.clock_ns(time.CLOCK_MONOTONIC)
    assert ahead_ns > 90_000 * 10**9
    for host in bed.hosts:
        assert reaches(bed.client, ADDRESSES[host.name])
        other = bed.other(host)
        words = (bed.address_of(other), *bed.options(other))
        found = host.ckpt(bed.ckpt, "doctor", *words)
        assert found["host"]["hostname"] == other.name
    bed.link_down()
    assert not reaches(bed.source, SERVER)
    assert reaches(bed.source, ADDRESSES["target"])
    bed.link_up()
    assert reaches(bed.source, SERVER)


def test_a_second_copy_and_a_lost_count_are_seen(bed: MigrationBed) -> None:
    counter = bed.start_counter(bed.source)
    bed.assert_one_copy(counter, bed.source)
    assert bed.leftovers(counter) == []
    taken = bed.source.ckpt(bed.ckpt, "dump", counter.job)["id"]
    shutil.copytree(bed.source.path(STORE), bed.target.path(STORE), dirs_exist_ok=True)
    bed.target.trust(bed.source, bed.ckpt)
    bed.target.ckpt(bed.ckpt, "restore", taken)
    counter.await_more()
    copies = bed.copies_alive(counter)
    assert {bed.host_of(pid) for pid in copies.running} == {*bed.hosts}
    with pytest.raises(AssertionError, match="counted"):
        counter.check()
    second = next(pid for pid in copies.running if bed.host_of(pid) is bed.target)
    bed.target.ckpt(bed.ckpt, "stop", counter.job)
    await_condition(lambda: second not in bed.copies_alive(counter).running, "its end")
    (first,) = bed.copies_alive(counter).running
    (cgroup_of(first) / "cgroup.freeze").write_text("1")
    await_condition(lambda: bed.copies_alive(counter).frozen, "a frozen copy")
    assert bed.copies_alive(counter).running == ()


def test_what_is_left_behind_is_seen(bed: MigrationBed) -> None:
    (bed.source.path(bed.source.state) / "migrations/0123456789abcdef").mkdir(parents=True)
    (bed.target.path(bed.target.state) / "operations/.half").mkdir(parents=True)
    (bed.target.cgroup.path / "ckpt-left").mkdir()
    command = ["nsenter", f"--net=/proc/{bed.target.init}/ns/net", "nft", "add", "table", "inet", "CRIU-left"]
    subprocess.run(command, check=True)
    counter = bed.start_counter(bed.source)
    assert bed.leftovers(counter) == [
        "source: migrations/0123456789abcdef",
        "target: operations/.half",
        "target: cgroup ckpt-left",
        "target: table inet CRIU-left",
    ]
    assert any(words.startswith("source: cgroup ckpt") for words in bed.leftovers())


def test_a_full_disk_is_full_until_it_is_freed(bed: MigrationBed) -> None:
    counter = bed.start_counter(bed.source)
    with bed.full_state(bed.source):
        refused = bed.source.ckpt(bed.ckpt, "dump", counter.job, exit_code=14)["error"]
        assert str(bed.source.state) in refused["message"]
    bed.source.ckpt(bed.ckpt, "dump", counter.job)
    bed.assert_one_copy(counter, bed.source)
    bed.await_nothing_left(counter)


def test_a_command_stops_goes_on_and_is_killed_where_it_is_told(bed: MigrationBed) -> None:
    counter = bed.start_counter(bed.source)
    dump = bed.start(bed.source, "dump", counter.job, failpoint="frozen:SIGSTOP")
    dump.await_stopped()
    assert bed.copies_alive(counter).frozen
    dump.go_on()
    assert dump.wait().document["id"]
    dump = bed.start(bed.source, "dump", counter.job, failpoint="frozen:SIGSTOP")
    dump.await_stopped()
    assert any(words.startswith("source: operations/") for words in bed.leftovers(counter))
    dump.kill()
    assert dump.wait().exit_code == 137
    bed.await_nothing_left(counter)
    bed.assert_one_copy(counter, bed.source)


def test_an_agent_is_found_on_its_host(bed: MigrationBed) -> None:
    asking = bed.start(bed.source, "doctor", bed.address_of(bed.target), *bed.options(bed.target))
    await_condition(lambda: bed.agents(bed.target), "the agent")
    assert bed.agents(bed.source) == []
    assert asking.wait().exit_code == 0
    await_condition(lambda: not bed.agents(bed.target), "its end")


def reaches(host: Host, address: str) -> bool:
    """Whether something answers there, if only to say that nobody listens."""
    program = """
import contextlib, socket, sys
with contextlib.suppress(ConnectionRefusedError):
    socket.create_connection((sys.argv[1], 1), 1)
"""
    return host.run("python3", "-I", "-S", "-c", program, address).returncode == 0
