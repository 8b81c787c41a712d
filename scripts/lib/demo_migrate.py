"""The story of scripts/demo-migrate: a counter and a redis with a connected client move to another host, live.

Rule: every command of ckpt that is shown is run just as it is shown, on the host that is named before it; only what
every one of them needs to come to the other host is left out, and shown once.
Rule: nothing is claimed that was not read: from the counter's own log, from the client's answers, or from /proc.
Rule: whatever happens, the hosts and all that is on them are removed.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

from demo import ENDING_SIGNALS, DemoError, chapter, say

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from harness.command import Ckpt
from harness.lab import Host
from harness.processes import MARK
from harness.traces import Traces
from harness.waiting import await_condition
from real.counting import Counter
from real.migrating import JOB_ADDRESS, NETWORK, MigrationBed

CLIENT = Path(__file__).with_name("redis_client.py")
PORT = 6379
MIGRATION_S = 300
ANSWERS_AFTER_S = 1.0


def main() -> int:
    """Tell the story; the exit code says whether it ended well."""
    parser = argparse.ArgumentParser(prog="scripts/demo-migrate")
    parser.add_argument("--redis-mb", type=int, default=500)
    redis_mb: int = parser.parse_args().redis_mb
    for number in ENDING_SIGNALS:
        signal.signal(number, _interrupt)
    try:
        with a_bed() as bed:
            tell_counter(bed)
            tell_redis(bed, redis_mb)
    except (DemoError, AssertionError) as error:
        print(f"\nscripts/demo-migrate: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        print("\nscripts/demo-migrate: interrupted; the hosts are removed.", file=sys.stderr)
        return 130
    return 0


class Bed(MigrationBed):
    """The hosts, and what is said about them."""

    @property
    def folder(self) -> Path:
        return self._traces.folder

    def show(self, host: Host, *words: str) -> None:
        """Run a command of ckpt on a host for the reader to see.

        Raises:
            DemoError: it failed.
        """
        print(f"\n   {host.name}$ ckpt {shlex.join(words)}", flush=True)
        done = host.run(*self.ckpt.command_line(*words), environ=host.environ(self.ckpt))
        for line in (done.stdout + done.stderr).splitlines():
            print(f"   {line}")
        print(flush=True)
        if done.returncode:
            raise DemoError(f"'ckpt {words[0]}' ended with exit code {done.returncode}")

    def move(self, job: str, *options: str) -> dict[str, Any]:
        """Migrate a job from the source to the target, and tell what it took."""
        words = ["ckpt", "migrate", job, self.address_of(self.target), *options]
        print(f"\n   source$ {shlex.join(words)}\n", flush=True)
        ended = self.start_migration(job, *options).wait(timeout_s=MIGRATION_S)
        if ended.exit_code:
            said = ended.document.get("error", {}).get("message", "") or ended.errors.strip()
            raise DemoError(f"'ckpt migrate' ended with exit code {ended.exit_code}: {said}")
        moved = ended.document
        for number, each in enumerate(moved["rounds"]):
            last = number == len(moved["rounds"]) - 1
            when = "while it stands still" if last else "while it runs"
            say(f"round {number}", f"{size(each['sent_bytes'])} in {each['ms']:.0f} ms, {when}")
        say("sent in all", f"{size(moved['sent_bytes'])} in {moved['total_ms'] / 1000:.2f} s")
        say("downtime", f"{moved['downtime_ms']:.0f} ms, as ckpt measured it")
        return moved


def tell_counter(bed: Bed) -> None:
    """A counter moves."""
    chapter("Two hosts, each with a network, files, process numbers and clocks of its own, and a third one.")
    clocks = [host.clock_ns(time.CLOCK_MONOTONIC) / 1e9 for host in bed.hosts]
    say("CLOCK_MONOTONIC", f"{clocks[0]:,.0f} s on the source, {clocks[1]:,.0f} s on the target")
    options = shlex.join(bed.options(bed.target)[:4])
    say("left out below", f"{options} --remote-ckpt …")

    chapter("A counter runs on the source. It checks its memory at every step.")
    counter = bed.start_counter(bed.source, name="counter")
    say("it has counted to", f"{counter.last():,}, once a millisecond")
    chapter("It moves.")
    bed.move(counter.job)
    counter.await_more(1000)
    bed.assert_one_copy(counter, bed.target)
    counts = counter.check()
    before, after = max(pairwise(counts), key=lambda pair: pair[1].realtime_ns - pair[0].realtime_ns)
    say(
        "its counter",
        f"… {before.number - 1:,}, {before.number:,} ‖ {after.number:,}, {after.number + 1:,} …",
    )
    say("in all", f"{len(counts):,} counts; none is missing, none was made twice")
    say("its longest pause", f"{(after.realtime_ns - before.realtime_ns) / 1e6:.0f} ms, as it saw it itself")
    passed_ms = (after.monotonic_ns - before.monotonic_ns) / 1e6
    say("its CLOCK_MONOTONIC", f"went on by {passed_ms:.0f} ms meanwhile, though the target's is behind")
    say("copies of it", "one, on the target")
    tell_left(bed, counter)
    bed.show(bed.target, "stop", counter.job)


def tell_redis(bed: Bed, megabytes: int) -> None:
    """A redis moves, with a client that notices nothing but a pause."""
    chapter(f"A redis runs on the source, with an address of its own, and is given {megabytes} MB.")
    job = "redis"
    options = {"port": str(PORT), "save": "", "appendonly": "no", "protected-mode": "no", "bind": "0.0.0.0"}  # noqa: S104 - of the job's own network
    server = ["redis-server", *(word for name, value in options.items() for word in (f"--{name}", value))]
    bed.show(bed.source, "run", "--detach", "--name", job, "--net", NETWORK, "--", *server)
    ask = ["python3", str(CLIENT)]
    await_condition(lambda: _answers(bed), f"redis to answer at {JOB_ADDRESS}")
    where = [JOB_ADDRESS, str(PORT)]
    keys = int(bed.client.must_run(*ask, "fill", *where, megabytes, timeout_s=MIGRATION_S))
    say("it holds", f"{keys:,} values of 10 kB")

    chapter("A client on the third host keeps one connection to it, and checks every answer.")
    report = bed.folder / "client"
    client = bed.client.start(*ask, "ask", *where, keys, report, environ=_environ(), output="client-said")
    begun, stop = Path(f"{report}.begun"), Path(f"{report}.stop")
    await_condition(begun.exists, "the client's first answer")
    time.sleep(ANSWERS_AFTER_S)
    say("its connection", bed.client.must_run("ss", "-Htn", "dst", JOB_ADDRESS).strip())
    chapter("The redis moves, with its address and its connection.")
    try:
        bed.move(job, "--tcp-established")
        # It must go on for a while on the target, too.
        time.sleep(ANSWERS_AFTER_S)
    finally:
        stop.touch()
        client.wait(MIGRATION_S)
    said = json.loads(report.read_text()) if report.exists() else {"wrong": "it died"}
    if said["wrong"]:
        raise DemoError(f"the client saw an error: {said['wrong']}")
    say("the client", f"got {said['answers']:,} answers over its one connection, all of them right")
    say("its longest wait", f"{said['longest_ms']:.0f} ms")
    there = bed.target.ckpt(bed.ckpt, "ps")["jobs"]
    if [each["state"] for each in there if each["name"] == job] != ["running"]:
        raise DemoError(f"the redis does not run on the target: {there}")
    right = int(bed.client.must_run(*ask, "compare", *where, keys, timeout_s=MIGRATION_S))
    say("its database", f"{right:,} of {keys:,} values are what was stored")
    if right != keys:
        raise DemoError(f"{keys - right} values are not what was stored")
    bed.show(bed.target, "stop", job)
    tell_left(bed)


def tell_left(bed: Bed, *counters: Counter) -> None:
    """Neither host has anything left of a migration."""
    bed.await_nothing_left(*counters)
    say("left behind", "nothing on either side")


@contextmanager
def a_bed() -> Iterator[Bed]:
    """The hosts in a folder of their own, removed with all that is on them in the end."""
    folder = Path(tempfile.mkdtemp(prefix="ckpt-demo-", dir="/var/tmp"))
    traces = Traces(folder)
    if outer := os.environ.get(MARK):
        # A test that runs this finds by its own mark what is left.
        traces.mark = f"{outer}-demo"
    # Also what is not in a cgroup of the hosts yet is found by it.
    os.environ[MARK] = traces.mark
    ckpt = Ckpt(traces)
    try:
        yield Bed(traces, ckpt, state_bytes=0)
    except BrokenPipeError:
        # Nobody reads any more, as after "| head"; what is left to do must not fail by that.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise
    finally:
        # Ctrl-C once more must not leave half of it behind.
        for number in ENDING_SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        chapter("Everything is removed.")
        ckpt.close()
        traces.remove()
        shutil.rmtree(folder)


def size(count: int) -> str:
    """Bytes for people."""
    return f"{count / 1e6:.1f} MB"


def _answers(bed: Bed) -> bool:
    return bed.client.run("python3", str(CLIENT), "fill", JOB_ADDRESS, str(PORT), "0").returncode == 0


def _environ() -> dict[str, str]:
    return {"PATH": os.environ["PATH"], MARK: os.environ[MARK]}


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
