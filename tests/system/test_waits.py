"""Everything that waits for a time, through a checkpoint, by each policy: images/subjects/waits.c says what it saw.

Whatever the policy makes of the clocks: each wait is over when its own clock says so, nobody sees EINTR, and the
first step after the restore sees the clocks that the policy promises.
"""

from __future__ import annotations

import math
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from harness.command import Ckpt
from harness.pauses import Pauses
from harness.subjects import Program, Workload
from harness.waiting import await_condition

from ckpt.host import ptrace, signalling_timers, timer_list
from ckpt.host.pace import DEFAULT
from ckpt.host.posix_timers import ends_in, timers_of
from ckpt.model.clocks import restore_span
from ckpt.units import SECOND, ByteCount, Nanoseconds, Pid

pytestmark = pytest.mark.system

MS = 1_000_000
#: From the start of the program to the end of its waits; the longer one where the dump came too late for the other.
SPANS_S = (4.0, 20.0)
PERIOD_MS = 400
#: Less than what is left of the waits: those who count it must still have something to wait for.
AWAY_S = 1.0
#: How late a wait may be over: what is promised, and as much again for a busy machine.
LATE_NS = 100 * MS
#: The program itself looks at the clocks every 2 ms, and the times of files, by which timers are put right, go on
#: by ticks.
EARLY_NS = 5 * MS

#: FUTEX_WAIT keeps its span in the caller's memory: it may be told EINTR, as any futex may.
MAY_BE_INTERRUPTED = {"futex_span"}
STAND_STILL = {"suspend": ("monotonic",), "continue": ("monotonic", "boottime")}
ENDLESS = {"poll_endless", "epoll_endless", "signal_endless"}
WAITS = 27


class Waits(Program):
    """images/subjects/waits.c."""

    span_s = SPANS_S[0]

    def command(self) -> list[str]:
        return [str(self._compiled / "waits"), str(self.log.path), str(self.span_s), str(PERIOD_MS)]

    def await_ready(self) -> None:
        await_condition(self.log.count, "the program to have begun all its waits")


class LongWaits(Waits):
    """For a machine that takes seconds to begin with a dump."""

    span_s = SPANS_S[1]


class Tail(Program):
    """`tail -F` of a file: it waits by inotify and poll(2), and ends of any error."""

    @property
    def followed(self) -> Path:
        return self.folder / "followed"

    @property
    def printed(self) -> str:
        return (self.folder / "out").read_text()

    def command(self) -> list[str]:
        self.followed.write_text("first\n")
        return ["tail", "-F", str(self.followed)]

    def await_ready(self) -> None:
        await_condition(lambda: "first" in self.printed, "tail to print")

    def append(self, text: str) -> None:
        with open(self.followed, "a") as file:
            file.write(f"{text}\n")
        await_condition(lambda: text in self.printed, lambda: f"tail to print {text}: {self.printed}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Passage:
    """What the program said: its waits by their names, and the clocks before and after the checkpoint.

    `overrun_ns` is by how much the restore took longer than ckpt had counted on.
    """

    waits: dict[str, dict[str, Any]]
    leap: dict[str, list[int]]
    overrun_ns: int

    def passed_ns(self, clock: str) -> int:
        """From the program's last look at a clock to its first after."""
        before, after = self.leap[f"{clock}_ns"]
        return after - before

    def late_ns(self, wait: str) -> int:
        """How long after its time a wait was over; what fell into the checkpoint was due at its end."""
        said = self.waits[wait]
        return int(said["done_ns"] - max(said["due_ns"], self.leap[f"{said['clock']}_ns"][1]))


def pass_through(workload: Workload, ckpt: Ckpt, policy: str) -> Passage:
    """Checkpoint the program in the middle of its waits, stay away, restore it, wait for the end of all."""
    for kind in (Waits, LongWaits):
        program = workload.start(kind)
        # No condition to wait for: that time passes is what this is about.
        time.sleep(0.2)
        dumped = ckpt("dump", "--cgroup", workload.cgroup, "--name", ckpt.new_job_name(), "--stop")
        if not any("wait" in line for line in program.log.ticks()):
            break
    time.sleep(AWAY_S)
    restored = ckpt("restore", dumped["id"], "--time", policy)
    return until_all_are_over(program, dumped, restored)


def until_all_are_over(program: Program, dumped: dict[str, Any], restored: dict[str, Any]) -> Passage:
    """Wait for the end of all waits of a program that was restored from what was dumped last."""

    def said() -> dict[str, dict[str, Any]]:
        return {line["wait"]: line for line in program.log.ticks() if "wait" in line}

    await_condition(lambda: len(said()) >= WAITS, lambda: f"all waits to be over: {sorted(said())}")
    leaps = [line["leap"] for line in program.log.ticks() if "leap" in line]
    assert leaps, "the program did not see that it was away"
    counted_on = restore_span(ByteCount(dumped["image_bytes"]), 1, DEFAULT)
    return Passage(
        waits=said(),
        leap=max(leaps, key=lambda leap: leap["realtime_ns"][1] - leap["realtime_ns"][0]),
        overrun_ns=max(0, int(restored["restore_ms"] * MS) - counted_on),
    )


@pytest.mark.alone
@pytest.mark.parametrize("policy", ["suspend", "continue", "elapsed", "host"])
def test_each_wait_is_over_when_its_clock_says_so_and_the_clocks_are_as_promised(
    policy: str, workload: Workload, ckpt: Ckpt
) -> None:
    passage = pass_through(workload, ckpt, policy)
    assert not ENDLESS & passage.waits.keys()
    interrupted = {name for name, wait in passage.waits.items() if wait.get("errno") == 4}
    assert interrupted <= MAY_BE_INTERRUPTED
    stood_still = STAND_STILL.get(policy, ())
    late_ns = LATE_NS + passage.overrun_ns
    late = {
        name: passage.late_ns(name)
        for name, wait in passage.waits.items()
        if "due_ns" in wait
        if name not in interrupted
    }
    assert all(-EARLY_NS <= by < late_ns for by in late.values()), late
    for clock in ("monotonic", "boottime", "realtime"):
        wait = passage.waits[f"periodic_{clock}"]
        noise = late_ns / (PERIOD_MS * MS)
        assert math.floor(wait["due"] - noise) <= wait["ticks"] <= wait["due"] + noise, wait
    for clock in ("monotonic", "boottime"):
        if clock in stood_still:
            assert 0 <= passage.passed_ns(clock) < late_ns, clock
        else:
            assert abs(passage.passed_ns(clock) - passage.passed_ns("realtime")) < MS, clock


@pytest.mark.alone
def test_a_posix_timer_set_to_a_time_of_the_wall_clock_fires_then_after_two_checkpoints(
    workload: Workload, ckpt: Ckpt
) -> None:
    for kind in (Waits, LongWaits):
        program = workload.start(kind)
        time.sleep(0.2)
        for away_s in (0.0, AWAY_S):
            dumped = ckpt("dump", "--cgroup", workload.cgroup, "--name", ckpt.new_job_name(), "--stop")
            is_too_late = any(str(line.get("wait")).startswith("posix") for line in program.log.ticks())
            if is_too_late:
                break
            timers = ckpt("show", dumped["id"])["timers"]
            posix = [
                timer for timer in timers if timer["kind"] == "posix" and timer["clock"] == "CLOCK_REALTIME"
            ]
            assert sorted(timer["absolute"] for timer in posix) == [False, True]
            time.sleep(away_s)
            restored = ckpt("restore", dumped["id"], "--time", "continue")
        if not is_too_late:
            break
    passage = until_all_are_over(program, dumped, restored)
    assert -EARLY_NS <= passage.late_ns("posix_realtime_until") < LATE_NS + passage.overrun_ns


def test_the_timers_of_a_held_process_are_put_off_and_those_of_the_wall_clock_set_to_their_time(
    workload: Workload,
) -> None:
    program = workload.new(Waits)
    # The harness waits for what it has started, and so would take the stops.
    process = subprocess.Popen(program.command())
    try:
        program.await_ready()
        before = ends_in(timer_list.read(), Nanoseconds(0))
        number = next(
            timer.number for timer in timers_of(Pid(process.pid)) if timer.clock == time.CLOCK_REALTIME
        )
        due_ns = Nanoseconds(time.clock_gettime_ns(time.CLOCK_REALTIME) + 3600 * SECOND)
        [tracee] = ptrace.seize([Pid(process.pid)], lambda: None)
        signalling_timers.put_off(tracee, Nanoseconds(5 * SECOND), {number: due_ns})
        tracee.detach()
        text = timer_list.read()
    finally:
        process.kill()
        process.wait()
    assert f" # expires at {due_ns}-".encode() in text
    after = ends_in(text, Nanoseconds(0))
    # The list has those of the whole machine.
    moved = set(before.boottime) - set(after.boottime)
    assert any(abs(later - 5 * SECOND - end) < SECOND for end in moved for later in after.boottime)


#: Sets one timer of the kind and with the interval that it is told, and says how often it fired within a second of
#: being asked, and whether it is armed then.
TIMER = """
import ctypes, signal, sys
kind, interval_s = sys.argv[1], int(sys.argv[2])
signals = {signal.SIGALRM}
signal.pthread_sigmask(signal.SIG_BLOCK, signals)
libc, timer, spec = ctypes.CDLL(None, use_errno=True), ctypes.c_void_p(), (ctypes.c_long * 4)(interval_s, 0, 1, 0)
if kind == "itimer":
    signal.setitimer(signal.ITIMER_REAL, 1, interval_s)
else:
    assert libc.timer_create(int(kind), None, ctypes.byref(timer)) == 0
    assert libc.timer_settime(timer, 0, spec, None) == 0
print("set", flush=True)
sys.stdin.readline()
fired = 0
while signal.sigtimedwait(signals, 1):
    fired += 1
if kind == "itimer":
    left_s = signal.getitimer(signal.ITIMER_REAL)[0]
else:
    assert libc.timer_gettime(timer, spec) == 0
    left_s = spec[2] + spec[3] / 1e9
print(fired, 0 < left_s <= interval_s + 1)
"""


@pytest.mark.parametrize("interval_s", [0, 100])
@pytest.mark.parametrize("kind", ["itimer", time.CLOCK_MONOTONIC, time.CLOCK_REALTIME])
def test_a_timer_that_fires_while_it_is_put_off_has_fired_once(
    monkeypatch: pytest.MonkeyPatch, kind: object, interval_s: int
) -> None:
    asked = 36 if kind == "itimer" else 224  # getitimer(2), timer_gettime(2)
    call = ptrace.Tracee.call

    def slow(tracee: ptrace.Tracee, number: int, *arguments: int) -> int:
        result = call(tracee, number, *arguments)
        if number == asked:
            time.sleep(1.2)
        return result

    process = subprocess.Popen(
        [sys.executable, "-c", TIMER, str(kind), str(interval_s)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "set\n"
        [tracee] = ptrace.seize([Pid(process.pid)], lambda: None)
        with monkeypatch.context() as patched:
            patched.setattr(ptrace.Tracee, "call", slow)
            signalling_timers.put_off(tracee, Nanoseconds(100 * MS))
        tracee.detach()
        said, _ = process.communicate("\n", timeout=60)
    finally:
        process.kill()
        process.wait()
    assert said.split() == ["1", str(interval_s > 0)]


def test_tail_follows_its_file_through_two_restores(workload: Workload, ckpt: Ckpt) -> None:
    tail = workload.start(Tail)
    assert isinstance(tail, Tail)
    for text in ("second", "third"):
        dumped = ckpt("dump", "--pid", tail.pid, "--name", ckpt.new_job_name(), "--stop")
        ckpt("restore", dumped["id"])
        tail.append(text)
    assert tail.printed.splitlines() == ["first", "second", "third"]


def test_a_sleep_of_the_shell_takes_no_longer_than_without_a_checkpoint(
    workload: Workload, ckpt: Ckpt, pauses: Pauses
) -> None:
    """Sleep has no place for what remains, and would sleep the whole span once more."""
    folder = workload.new(Tail).folder
    began = time.monotonic()
    pid = workload.spawn(["/bin/sh", "-c", "sleep 3; date >done"], folder)
    await_condition(
        lambda: subprocess.run(["pgrep", "-P", str(pid), "sleep"], check=False, capture_output=True).stdout,
        "the sleep",
    )
    dumped = ckpt("dump", "--pid", pid, "--name", ckpt.new_job_name(), "--stop")
    left_s = 3 - (time.monotonic() - began)
    ckpt("restore", dumped["id"])
    restored = time.monotonic()
    await_condition((folder / "done").exists, "the end of the sleep")
    assert pauses.ran_s(restored) < max(0.0, left_s) + 1
