"""The story of scripts/demo: a job runs, is dumped, is killed, comes back, and goes on.

Rule: every command that is shown is run just as it is shown, and what it prints is shown.
Rule: nothing is claimed that was not read: from the job's own log, from /proc, or from its files.
Rule: whatever happens, the job, its checkpoints and its files are removed.
"""

from __future__ import annotations

import json
import os
import secrets
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

CKPT = Path(sys.executable).with_name("ckpt")
SUBJECT = Path(__file__).parents[2] / "images/subjects/tree.py"
ALARM_S = 8
AWAY_S = 3
ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PATIENCE_S = 30
RECORD_BYTES = 22

Tick = dict[str, Any]


class DemoError(Exception):
    """The job did not go on as it must; the text says how."""


def main() -> int:
    """Tell the story; the exit code says whether it ended well."""
    for number in ENDING_SIGNALS:
        signal.signal(number, INTERRUPTION.come)
    # The default local store, whatever the caller's shell is set to.
    for variable in ("CKPT_STORE", "CKPT_STATE"):
        os.environ.pop(variable, None)
    try:
        with a_job() as job:
            tell(job)
    except DemoError as error:
        print(f"\nscripts/demo: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        print("\nscripts/demo: interrupted; the job and its checkpoints are removed.", file=sys.stderr)
        return 130
    return 0


class Interruption:
    """Raises KeyboardInterrupt for a signal; not while a command is being started, but right after.

    Popen() that is interrupted leaves a child that nobody knows, and that runs on.
    """

    def __init__(self) -> None:
        self._held = False
        self._came = False

    def come(self, *_: object) -> None:
        """Handle a signal."""
        if not self._held:
            raise KeyboardInterrupt
        self._came = True

    def start(self, command: list[str]) -> subprocess.Popen[str]:
        """Start a command whose output is read."""
        self._held = True
        try:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        finally:
            self._held = False

    def await_end(self, process: subprocess.Popen[str]) -> str:
        """What the command wrote; one that is interrupted undoes what it had begun before this ends."""
        try:
            self._raise_what_came()
            output, errors = process.communicate()
        except KeyboardInterrupt:
            process.terminate()
            process.wait()
            raise
        return output + errors

    def _raise_what_came(self) -> None:
        if self._came:
            self._came = False
            raise KeyboardInterrupt


INTERRUPTION = Interruption()


class Job:
    """The job of this demo, and what it says of itself."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.folder = folder
        self.log = folder / "log"
        self._seen_bytes = 0
        self._ticks: list[Tick] = []

    def command(self) -> list[str]:
        options = ["--log", str(self.log), "--dir", str(self.folder), "--alarm-s", str(ALARM_S)]
        return ["/usr/bin/python3", str(SUBJECT), *options, "--shm", self.name]

    def ticks(self) -> list[Tick]:
        """All that it reported so far, checked: no number is missing, none comes twice."""
        if self.log.exists():
            with self.log.open("rb") as file:
                file.seek(self._seen_bytes)
                new = file.read()
            new = new[: new.rfind(b"\n") + 1]
            self._seen_bytes += len(new)
            self._ticks += map(json.loads, new.splitlines())
        for number, tick in enumerate(self._ticks, 1):
            if "error" in tick:
                raise DemoError(f"the job found itself wrong: {tick['error']}")
            if tick["tick"] != number:
                raise DemoError(f"the job counted {tick['tick']} where {number} was due")
        return self._ticks

    def await_ticks(self, count: int) -> Tick:
        """Wait until it has counted so far; returns its newest report."""
        await_condition(lambda: len(self.ticks()) >= count, f"the job to count to {count}")
        return self.ticks()[-1]

    def processes(self) -> list[int]:
        """Every process of the job, as this host numbers them."""
        jobs = ask("ps")["jobs"]
        cgroup = next((job["cgroup"] for job in jobs if job["name"] == self.name), None)
        if not cgroup or not os.path.isdir(cgroup):
            return []
        return sorted(
            int(pid)
            for folder, _, _ in os.walk(cgroup)
            for pid in Path(folder, "cgroup.procs").read_text().split()
        )


def tell(job: Job) -> None:
    """The story."""
    chapter("A job starts: a parent, two children, pipes, shared memory, a database, a file, timers.")
    show("run", "--detach", "--name", job.name, "--", *job.command())
    tick = job.await_ticks(20)
    say("it has counted to", tick["tick"])
    for pid in job.processes():
        threads = len(os.listdir(f"/proc/{pid}/task"))
        say(f"process {pid}", f"{threads} thread(s)  {command_of(pid)}")
    say("its sleeping timer", of_timer(tick))

    chapter("It is dumped while it runs, and runs on.")
    before = len(job.ticks())
    show("dump", job.name)
    job.await_ticks(len(job.ticks()) + 10)
    say("it counted on", f"from {before} to {len(job.ticks())}")
    say(
        "the longest pause",
        f"{longest_pause_ms(job.ticks()[before - 1 :]):.0f} ms between two of its counts, which are else 50 ms apart",
    )

    chapter("It is dumped again and killed. Only what is new is stored.")
    show("dump", job.name, "--stop")
    last = job.ticks()[-1]
    if left := job.processes():
        raise DemoError(f"processes {left} are left after --stop")
    say("processes left", 0)
    say("it had counted to", last["tick"])
    say("its sleeping timer", of_timer(last))

    chapter(f"Nothing of it runs for {AWAY_S} seconds. Then it is restored.")
    time.sleep(AWAY_S)
    if job.ticks()[-1] != last:
        raise DemoError("it counted on although it was killed")
    show("restore", job.name)
    job.await_ticks(last["tick"] + 20)
    first = job.ticks()[last["tick"]]
    say(
        "its counter",
        f"… {last['tick'] - 1}, {last['tick']} ‖ {first['tick']}, {first['tick'] + 1} …  no gap, none twice",
    )
    tell_clocks(last, first)
    await_condition(lambda: "alarm_late_ms" in job.ticks()[-1], "the sleeping timer to fire")
    late_ms = job.ticks()[-1]["alarm_late_ms"]
    say("its sleeping timer", f"fired {late_ms:.1f} ms after the moment of its own clock that it was set to")
    if not 0 <= late_ms < 1000:
        raise DemoError("the timer did not fire when it was due")

    chapter("Its files went on as well; this is read from outside, after it was stopped.")
    show("stop", job.name)
    tell_files(job)


def of_timer(tick: Tick) -> str:
    """What the job's timer will do, or has done on a machine that took so long."""
    left_ms = tick.get("alarm_left_ms")
    return "has fired" if left_ms is None else f"fires in {left_ms / 1000:.1f} s of CLOCK_MONOTONIC"


def tell_clocks(last: Tick, first: Tick) -> None:
    """What the job's clocks say before the kill and after the restore."""
    meanings = {
        "monotonic_ns": "went on from the freeze",
        "boottime_ns": "counts the time in the checkpoint, as after a suspend",
        "realtime_ns": "is always the host's",
    }
    for clock, meaning in meanings.items():
        passed_s = (first[clock] - last[clock]) / 1e9
        say(f"CLOCK_{clock.removesuffix('_ns').upper()}", f"+{passed_s:.2f} s  {meaning}")
        if not (0 <= passed_s < AWAY_S if clock == "monotonic_ns" else passed_s >= AWAY_S):
            raise DemoError(f"{clock} shows {passed_s:.2f} s between the last count and the next")


def tell_files(job: Job) -> None:
    """What is in the job's database and data file."""
    count = len(job.ticks())
    with closing(sqlite3.connect(job.folder / "ticks.db")) as database:
        (rows,) = database.execute("SELECT count(*) FROM ticks").fetchone()
        (verdict,) = database.execute("PRAGMA quick_check").fetchone()
    records = (job.folder / "data.txt").stat().st_size // RECORD_BYTES
    say("its database", f"{rows} rows for {count} counts; sqlite's quick_check: {verdict}")
    say("its data file", f"{records} records")
    if (rows, records, verdict) != (count, count, "ok"):
        raise DemoError("its files are not what it counted")


@contextmanager
def a_job() -> Iterator[Job]:
    """A job with a name and a folder of its own, removed with its checkpoints in the end."""
    name = f"demo-{secrets.token_hex(3)}"
    folder = Path(tempfile.mkdtemp(prefix="ckpt-demo-", dir="/var/tmp"))
    try:
        yield Job(name, folder)
    except BrokenPipeError:
        # Nobody reads any more, as after "| head"; what is left to do must not fail by that.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise
    finally:
        # Ctrl-C once more must not leave half of it behind.
        for number in ENDING_SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        remove(name, folder)


def remove(name: str, folder: Path) -> None:
    """Remove the job, its checkpoints and its files, as far as they are there."""
    chapter("Everything is removed.")
    if any(job["name"] == name for job in ask("ps").get("jobs", [])):
        show("rm-job", name, "--force")
    if ids := [checkpoint["id"][:16] for checkpoint in ask("list", "--job", name).get("checkpoints", [])]:
        show("rm", *ids)
    Path("/dev/shm", name).unlink(missing_ok=True)
    shutil.rmtree(folder)


def show(*words: str) -> None:
    """Run a command of ckpt for the reader to see.

    Raises:
        DemoError: it failed.
    """
    print(f"\n   $ ckpt {shlex.join(words)}", flush=True)
    process = INTERRUPTION.start([CKPT, *words])
    for line in INTERRUPTION.await_end(process).splitlines():
        print(f"   {line}")
    print(flush=True)
    if process.returncode:
        raise DemoError(f"'ckpt {words[0]}' ended with exit code {process.returncode}")


def ask(*words: str) -> dict[str, Any]:
    """The answer of a command of ckpt, as JSON; empty if it has none."""
    done = subprocess.run([CKPT, *words, "--json"], check=False, capture_output=True, text=True)
    try:
        answer: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        return {}
    return answer


def chapter(title: str) -> None:
    print(f"\n── {title}", flush=True)


def say(what: str, value: object) -> None:
    print(f"   {what:<22} {value}", flush=True)


def command_of(pid: int) -> str:
    """A process's command line, cut to the width of a page."""
    words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    return words if len(words) <= 70 else f"{words[:69]}…"


def longest_pause_ms(ticks: list[Tick]) -> float:
    """The longest time between one report and the next, by the job's own clock."""
    return max(later["monotonic_ns"] - earlier["monotonic_ns"] for earlier, later in pairwise(ticks)) / 1e6


def await_condition(condition: Callable[[], bool], what: str) -> None:
    """Wait until it is so.

    Raises:
        DemoError: it is not, after a while.
    """
    end = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > end:
            raise DemoError(f"waited {PATIENCE_S} s in vain for {what}")
        time.sleep(0.01)


if __name__ == "__main__":
    sys.exit(main())
