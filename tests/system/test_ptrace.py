"""Processes that were stopped and made to call: they go on as if nothing had been."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from harness.cgroups import Cgroup, unified_mount
from harness.processes import is_dead
from harness.traces import SESSION
from harness.waiting import await_condition

from ckpt.errors import OsRefused
from ckpt.host import ptrace
from ckpt.units import Pid

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(os.geteuid() != 0, reason="other processes are traced as root"),
    pytest.mark.skipif(not ptrace.supported(), reason="the registers of this machine are not known"),
]

SYS_GETPID, SYS_GETTID, SYS_CLOSE = 39, 186, 3

# Each thread waits in a call, and says what came of it: result and errno, and whether it took its time.
WAITING = """
import ctypes, os, select, struct, threading, time
libc = ctypes.CDLL(None, use_errno=True)
SPAN = 1.2
spec = struct.pack("qq", 1, 200_000_000)
def raw(*arguments):
    result = libc.syscall(*arguments)
    return result, ctypes.get_errno() if result < 0 else 0
word = ctypes.c_uint32(1)
def mutex():
    return raw(202, ctypes.byref(word), 0, 1, spec, None, 0)
reading, writing = os.pipe()
poller = select.epoll()
poller.register(reading, select.EPOLLIN)
poll = struct.pack("ihh", reading, 1, 0)
ways = {
    "nanosleep": lambda: raw(35, spec, None),
    "clock_nanosleep": lambda: raw(230, 1, 0, spec, None),
    "poll": lambda: raw(7, ctypes.create_string_buffer(poll), 1, 1200),
    "futex": mutex,
}
def run(name, way):
    began = time.monotonic()
    result = way()
    said[name] = (*result, time.monotonic() - began)
said = {}
threads = [threading.Thread(target=run, args=each) for each in ways.items()]
for thread in threads:
    thread.start()
print("ready", flush=True)
counter = 0
while any(thread.is_alive() for thread in threads):
    counter = (counter * 31 + 7) % 1000003
for name, (result, error, took) in sorted(said.items()):
    print(name, result, error, 1.1 < took < 30)
print("signals", os.environ.get("X", 0), flush=True)
"""


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts Python programs, and ends them."""
    with ExitStack() as running:

        def start(program: str) -> subprocess.Popen[str]:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-u", "-c", program],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            running.callback(process.communicate)
            running.callback(process.kill)
            return process

        yield start


def nothing() -> None:
    """What runs needs no thaw."""


def hear(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def call_in_all(tracee: ptrace.Tracee) -> None:
    for thread in tracee.threads:
        assert tracee.call(SYS_GETTID, thread=thread) == thread
    assert tracee.call(SYS_GETPID) == tracee.pid
    with tracee.scratch(10_000) as address:
        tracee.write(address + 5_000, b"written")
        assert tracee.read(address + 5_000, 8) == b"written\0"
    with pytest.raises(OSError, match="Bad file descriptor"):
        tracee.call(SYS_CLOSE, 12345)


def test_waiting_calls_go_on_to_their_end(start: Callable[..., subprocess.Popen[str]]) -> None:
    process = start(WAITING)
    assert hear(process) == "ready"
    for _ in range(3):
        (tracee,) = ptrace.seize([Pid(process.pid)], nothing)
        try:
            assert len(tracee.threads) == len(tracee.instruction_pointers()) == 5
            call_in_all(tracee)
        finally:
            tracee.detach()
    said = dict(hear(process).split(" ", 1) for _ in range(4))
    assert said == {
        "clock_nanosleep": "0 0 True",
        "futex": "-1 110 True",
        "nanosleep": "0 0 True",
        "poll": "0 0 True",
    }


def test_frozen_processes_are_stopped_before_they_run_on(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    mount = unified_mount()
    if mount is None:
        pytest.skip("no cgroup version 2 is mounted")
    count = tmp_path / "count"
    process = start(f"while True:\n open({str(count)!r}, 'a').write('x')")
    await_condition(count.exists, "the program to run")
    cgroup = Cgroup(mount / f"{SESSION}-ptrace").create()
    try:
        (cgroup.path / "cgroup.procs").write_text(str(process.pid))
        (cgroup.path / "cgroup.freeze").write_text("1")
        await_condition(cgroup.is_frozen, "the freeze")
        before = count.stat().st_size
        (tracee,) = ptrace.seize(
            [Pid(process.pid)], lambda: (cgroup.path / "cgroup.freeze").write_text("0") and None
        )
        try:
            call_in_all(tracee)
            assert count.stat().st_size == before
        finally:
            tracee.detach()
        await_condition(lambda: count.stat().st_size > before, "the program to run on")
    finally:
        cgroup.remove()


def test_a_stopped_process_stays_stopped_and_signals_come_afterwards(
    start: Callable[..., subprocess.Popen[str]],
) -> None:
    process = start(
        "import signal, time\n"
        "signal.signal(signal.SIGUSR1, lambda *_: print('heard', flush=True))\n"
        "print('ready', flush=True)\n"
        "while True: time.sleep(100)"
    )
    assert hear(process) == "ready"
    process.send_signal(signal.SIGSTOP)
    await_condition(lambda: state(process.pid) == "T", "the stop")
    (tracee,) = ptrace.seize([Pid(process.pid)], nothing)
    try:
        call_in_all(tracee)
        process.send_signal(signal.SIGUSR1)
        call_in_all(tracee)
    finally:
        tracee.detach()
    await_condition(lambda: state(process.pid) == "T", "the process to be stopped as before")
    process.send_signal(signal.SIGCONT)
    assert hear(process) == "heard"


def test_one_that_is_killed_meanwhile_is_no_obstacle(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    child = tmp_path / "child"
    threads = "import threading, time\nthreading.Thread(target=time.sleep, args=(100,)).start()\n"
    process = start(
        "import os\npid = os.fork()\n"
        f"if pid:\n print(pid, flush=True)\n print(os.waitpid(pid, 0)[1], flush=True)\n"
        f"else:\n exec({threads!r})\n open({str(child)!r}, 'w').close()"
    )
    pid = Pid(int(hear(process)))
    await_condition(child.exists, "the child's threads")
    (tracee,) = ptrace.seize([pid], nothing)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(ProcessLookupError):
        tracee.call(SYS_GETPID)
    tracee.detach()
    assert hear(process) == str(int(signal.SIGKILL)), "its parent hears of it"


def test_processes_die_with_their_tracer_and_cannot_have_two(
    start: Callable[..., subprocess.Popen[str]],
) -> None:
    process = start("import time\nprint('ready')\ntime.sleep(100)")
    assert hear(process) == "ready"
    package = str(Path(ptrace.__file__).parents[2])
    tracer = start(
        f"import sys, time; sys.path[:0] = [{package!r}]\n"
        "from ckpt.host.ptrace import seize\n"
        f"seized = seize([{process.pid}], lambda: None)\n"
        "print('seized', flush=True)\ntime.sleep(100)"
    )
    assert hear(tracer) == "seized"
    with pytest.raises(OsRefused, match=f"process {tracer.pid} traces it"):
        ptrace.seize([Pid(process.pid)], nothing)
    tracer.kill()
    await_condition(lambda: is_dead(process.pid), "the traced process to die")


def test_a_process_that_is_not_there_leaves_the_others_running(
    start: Callable[..., subprocess.Popen[str]],
) -> None:
    process = start("while input(): print('runs', flush=True)")
    ended = start("")
    ended.wait()
    with pytest.raises(OsRefused, match="No such process"):
        ptrace.seize([Pid(process.pid), Pid(ended.pid)], nothing)
    assert process.stdin is not None
    process.stdin.write("go on\n")
    process.stdin.flush()
    assert hear(process) == "runs"


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
