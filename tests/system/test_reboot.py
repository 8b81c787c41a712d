"""Jobs over a reboot: suspended at the shutdown or cut off, and brought back in a boot of which nothing is as before."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness.command import Ckpt
from harness.subjects import installed
from harness.traces import Traces
from harness.waiting import await_condition
from real.counting import Counter
from real.rebooting import Machine

pytestmark = pytest.mark.system

#: Says every 10 ms what its clocks read; it holds a file in memory, and writes what it has counted into it.
CLOCKS = """
import os, sys, time
log = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
held = os.open(sys.argv[2], os.O_RDWR | os.O_CREAT)
count = 0
while True:
    count += 1
    os.pwrite(held, b"%d" % count, 0)
    clocks = (time.CLOCK_MONOTONIC, time.CLOCK_BOOTTIME, time.CLOCK_REALTIME)
    os.write(log, b"%d %d %d %d\\n" % (os.getpid(), *map(time.clock_gettime_ns, clocks)))
    time.sleep(0.01)
"""

#: Has a connection to somebody outside, as a service has at a shutdown.
CONNECTED = """
import socket, sys, time
peer = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
while True:
    time.sleep(0.1)
"""


@pytest.fixture
def machine(traces: Traces, ckpt: Ckpt) -> Iterator[Machine]:
    machine = Machine(traces, ckpt)
    yield machine
    machine.cut_power()


def start_counter(machine: Machine, ckpt: Ckpt, folder: Path, *options: object) -> Counter:
    """A job that counts, started with these options of `ckpt run`."""
    counter = new_counter(ckpt, folder)
    machine.ckpt("run", "--detach", "--name", counter.job, *options, "--", *counter.command)
    counter.await_more()
    return counter


def new_counter(ckpt: Ckpt, folder: Path) -> Counter:
    name = ckpt.new_job_name()
    counter = Counter(job=name, log=folder / f"{name}.count")
    counter.write_program()
    return counter


def states(machine: Machine) -> dict[str, str]:
    return {job["name"]: job["state"] for job in machine.ckpt("ps")["jobs"]}


def names(entries: list[dict[str, Any]]) -> list[str]:
    return [entry["job"] for entry in entries]


class Redis:
    """redis on the machine, asked from there."""

    def __init__(self, machine: Machine, ckpt: Ckpt, folder: Path) -> None:
        self.machine, self.name, self.socket = machine, ckpt.new_job_name(), folder / "r.sock"
        options = (
            "--port",
            0,
            "--unixsocket",
            self.socket,
            "--dir",
            folder,
            "--save",
            "",
            "--appendonly",
            "no",
        )
        machine.ckpt(
            "run", "--detach", "--name", self.name, "--", installed("redis-server"), *options, timeout_s=60
        )
        await_condition(self.socket.exists, "redis to listen")

    def ask(self, *words: object) -> str:
        return self.machine.host.must_run("redis-cli", "-s", self.socket, *words).strip()


def test_suspended_jobs_go_on_after_a_reboot(machine: Machine, ckpt: Ckpt, tmp_path: Path) -> None:
    booted = machine.boot_id
    # A session has begun that is not there after the reboot.
    machine.host.must_run("mount", "--mkdir", "-t", "tmpfs", "tmpfs", "/run/user/0")
    counter = start_counter(machine, ckpt, tmp_path)
    redis = Redis(machine, ckpt, tmp_path)
    assert redis.ask("SET", "key", "value") == "OK"
    clocks, volume, held = ckpt.new_job_name(), tmp_path / "volume", Path("/run/held")
    words = (sys.executable, "-I", "-S", "-c", CLOCKS, volume / "log", held)
    machine.ckpt("run", "--detach", "--name", clocks, "--volume", f"{volume}:32M", "--", *words)

    def read_clocks() -> list[tuple[int, ...]]:
        log = machine.host.path(volume / "log")
        text = log.read_text() if log.exists() else ""
        return [tuple(map(int, line.split())) for line in text.splitlines()]

    await_condition(lambda: len(read_clocks()) > 5, "the clocks to be read")

    suspended = machine.ckpt("suspend", "--all")
    assert sorted(names(suspended["suspended"])) == sorted([counter.job, redis.name, clocks])
    assert set(states(machine).values()) == {"stopped"}
    read_before = len(read_clocks())
    at_shutdown = counter.last()
    machine.reboot()
    assert machine.boot_id != booted
    assert not machine.host.path(held).exists()

    assert machine.ckpt("recover") == {"actions": [], "problems": []}
    assert set(states(machine).values()) == {"stopped"}
    resumed = machine.ckpt("resume", "--all", "--crashed")
    assert names(resumed["resumed"]) == [counter.job, redis.name, clocks]
    assert set(states(machine).values()) == {"running"}

    counter.await_more()
    assert counter.last() > at_shutdown
    counter.check()
    assert redis.ask("GET", "key") == "value"
    await_condition(lambda: len(read_clocks()) > read_before + 2, "the clocks to go on")
    (pid, *last), (pid_after, *first) = read_clocks()[read_before - 1 : read_before + 1]
    monotonic_ns, boottime_ns, realtime_ns = (
        after - before for before, after in zip(last, first, strict=True)
    )
    assert pid_after == pid
    assert 0 < monotonic_ns < 500_000_000 < realtime_ns
    assert abs(boottime_ns - realtime_ns) < 100_000_000
    await_condition(
        lambda: int(machine.host.path(held).read_bytes()) > read_before, "the file in memory to be written on"
    )
    assert machine.ckpt("resume", "--all") == {"resumed": [], "skipped": [], "problems": []}


def test_after_a_power_cut_what_was_supervised_in_the_background_goes_on(
    machine: Machine, ckpt: Ckpt, tmp_path: Path
) -> None:
    often = ("--every", "200ms", "--max-frozen", "90%", "--keep", "2")
    in_hand, plain = new_counter(ckpt, tmp_path), start_counter(machine, ckpt, tmp_path)
    supervised = new_counter(ckpt, tmp_path)
    supervised.log.touch()
    options = (*often, "--with-files", supervised.log)
    machine.ckpt("run", "--detach", "--name", supervised.job, *options, "--", *supervised.command)
    in_hand.log.touch()
    words = (
        "run",
        "--name",
        in_hand.job,
        *often,
        "--with-files",
        in_hand.log,
        "--resume",
        "--",
        *in_hand.command,
    )
    machine.start_ckpt(*words, output="in-hand")

    both = {supervised.job, in_hand.job}
    await_condition(lambda: both <= set(names(machine.ckpt("list")["checkpoints"])), "the first checkpoints")
    await_condition(lambda: any((ckpt.state / "operations").iterdir()), "a checkpoint to be under way")
    under_way = set(os.listdir(ckpt.state / "operations"))
    machine.reboot()

    assert set(states(machine).values()) == {"exited"}
    resumed = machine.ckpt("resume", "--all", "--crashed")
    assert [(each["job"], each["supervised"]) for each in resumed["resumed"]] == [(supervised.job, True)]
    assert states(machine) == {plain.job: "exited", supervised.job: "running", in_hand.job: "exited"}
    assert not under_way & set(os.listdir(ckpt.state / "operations"))
    supervised.await_more()
    supervised.check()
    newest = machine.ckpt("list", "--job", supervised.job)["checkpoints"][-1]["id"]
    await_condition(
        lambda: machine.ckpt("list", "--job", supervised.job)["checkpoints"][-1]["id"] != newest,
        "its supervisor to take a checkpoint",
    )

    # At the next shutdown each is suspended, and each has one who brings it back.
    again = machine.start_ckpt(*words, output="in-hand")
    in_hand.await_more()
    suspended = machine.ckpt("suspend", "--all")["suspended"]
    assert {each["job"]: each["resumed_by"] for each in suspended} == {
        supervised.job: "ckpt",
        in_hand.job: "caller",
    }
    assert again.wait(timeout=60) == 75
    machine.reboot()
    machine.start_ckpt(*words, output="in-hand")
    assert names(machine.ckpt("resume", "--all", "--crashed")["resumed"]) == [supervised.job]
    for each in (supervised, in_hand):
        each.await_more()
        each.check()


def test_the_jobs_of_a_group_end_and_come_back_together(machine: Machine, ckpt: Ckpt, tmp_path: Path) -> None:
    group = f"{ckpt.new_job_name()}-group"
    pair = [start_counter(machine, ckpt, tmp_path, "--group", group) for _ in range(2)]
    done = machine.ckpt("suspend", pair[1].job)
    assert sorted(names(done["suspended"])) == [each.job for each in pair]
    machine.reboot()
    resumed = machine.ckpt("resume", "--all")["resumed"]
    assert [(each["job"], each["supervised"]) for each in resumed] == [(each.job, True) for each in pair]
    for each in pair:
        each.await_more()
        each.check()


def test_a_job_that_cannot_be_checkpointed_is_told_and_runs_on(
    traces: Traces, ckpt: Ckpt, tmp_path: Path
) -> None:
    counter = new_counter(ckpt, tmp_path)
    ckpt("run", "--detach", "--name", counter.job, "--", *counter.command)
    connected = ckpt.new_job_name()
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(20)
        words = (sys.executable, "-I", "-S", "-c", CONNECTED, server.getsockname()[1])
        ckpt("run", "--detach", "--name", connected, "--", *words)
        with server.accept()[0]:
            done = ckpt("suspend", "--all", exit_code=3)
            assert names(done["suspended"]) == [counter.job]
            assert [(each["subject"], each["slug"]) for each in done["problems"]] == [
                (connected, "cannot-checkpoint")
            ]
            assert {job["name"]: job["state"] for job in ckpt("ps")["jobs"]} == {
                counter.job: "stopped",
                connected: "running",
            }
            assert names(ckpt("suspend", connected, "--tcp-close")["suspended"]) == [connected]
    # As where its file system is not mounted yet: no empty one is made in its place.
    away = ckpt.store.rename(tmp_path / "away")
    assert {each["slug"] for each in ckpt("resume", "--all", exit_code=3)["problems"]} == {"store-unusable"}
    assert not ckpt.store.exists()
    away.rename(ckpt.store)
    assert names(ckpt("resume", "--all")["resumed"]) == [counter.job, connected]
    counter.await_more()
    counter.check()
    ckpt("rm-job", counter.job, exit_code=62)


def test_what_is_not_durable_in_time_is_given_up_and_runs_on(ckpt: Ckpt, tmp_path: Path) -> None:
    counter = new_counter(ckpt, tmp_path)
    ckpt("run", "--detach", "--name", counter.job, "--", *counter.command)
    counter.await_more()
    done = ckpt("suspend", "--all", "--timeout", "20ms", exit_code=3)
    assert [each["slug"] for each in done["problems"]] == ["not-in-time"]
    counter.await_more()
    counter.check()
    assert ckpt("resume", "--list")["suspended"] == []


def test_a_resume_that_is_killed_before_anything_went_on_loses_no_job(ckpt: Ckpt, tmp_path: Path) -> None:
    counter = new_counter(ckpt, tmp_path)
    ckpt("run", "--detach", "--name", counter.job, "--", *counter.command)
    ckpt("suspend", counter.job)
    assert ckpt.run("resume", counter.job, CKPT_FAILPOINT="filed:SIGKILL").returncode != 0
    await_condition(lambda: ckpt("ps")["jobs"][0]["state"] == "stopped", "it to be taken back")
    assert names(ckpt("resume", "--all")["resumed"]) == [counter.job]
    ckpt("stop", counter.job)
