"""What CRIU loses of a task and its threads is what it was after a restore, whoever calls it."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest
from harness.command import Ckpt
from harness.subjects import Program, Workload
from harness.waiting import await_condition
from real.holding import Holder, holding

from ckpt.host import task_settings
from ckpt.host.inspection import snapshot
from ckpt.host.inspection.settings import read_settings
from ckpt.host.process_table import all_processes, descendants
from ckpt.host.setting_again import set_again
from ckpt.model.settings import CpuRange, ProcessSettings
from ckpt.units import Nanoseconds, Pid

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(os.sched_getaffinity(0) < {0, 1}, reason="two CPUs are needed to tell them apart"),
]

IDLE = 3 << 13
BEST_EFFORT_6 = 2 << 13 | 6

# Each thread looks at itself all the time, and complains when it is not as it had been set.
PROGRAM = """
import ctypes, os, sys, threading, time
libc = ctypes.CDLL(None)
IOPRIO_SET, IOPRIO_GET, PR_SET_TIMERSLACK, PR_GET_TIMERSLACK = 251, 252, 29, 30

def complain(*what):
    with open("complaints", "a") as stream:
        print(*what, file=stream)

def thread(cpus, priority, slack):
    if cpus is not None:
        os.sched_setaffinity(0, cpus)
        libc.syscall(IOPRIO_SET, 1, 0, priority)
        libc.prctl(PR_SET_TIMERSLACK, slack, 0, 0, 0)
    mine = os.sched_getaffinity(0), libc.syscall(IOPRIO_GET, 1, 0), libc.prctl(PR_GET_TIMERSLACK, 0, 0, 0, 0)
    open(f"ready-{threading.get_native_id()}", "w").close()
    while True:
        time.sleep(0.005)
        now = os.sched_getaffinity(0), libc.syscall(IOPRIO_GET, 1, 0), libc.prctl(PR_GET_TIMERSLACK, 0, 0, 0, 0)
        if now != mine:
            complain(threading.get_native_id(), mine, now)
            mine = now
        if os.path.exists("restored"):
            open(f"restored-{threading.get_native_id()}", "w").close()

with open("/proc/self/autogroup", "w") as stream:
    stream.write("7")
if os.fork():
    with open("/proc/self/coredump_filter", "w") as stream:
        stream.write("0x7f")
    threading.Thread(target=thread, args=({1}, 2 << 13 | 6, 70_000)).start()
    thread({0}, 3 << 13, 123_456)
else:
    thread(None, 0, 0)
"""


class Set(Program):
    """A process whose two threads are bound to a CPU each, and its child that is as it was born."""

    def command(self) -> list[str]:
        return [sys.executable, "-I", "-S", "-c", PROGRAM]

    def await_ready(self) -> None:
        self._await_three("ready-*")

    def complaints(self) -> str:
        """What the threads say of themselves after the restore."""
        (self.folder / "restored").touch()
        self._await_three("restored-*")
        with suppress(FileNotFoundError):
            return (self.folder / "complaints").read_text()
        return ""

    def _await_three(self, files: str) -> None:
        await_condition(lambda: len(list(self.folder.glob(files))) == 3, f"three threads to write {files}")


def settings_of(root: int) -> list[tuple[object, ...]]:
    """What the kernel says of a process, its threads and its children, in the order in which they were made."""
    libc = ctypes.CDLL(None, use_errno=True)
    found: list[tuple[object, ...]] = []
    for pid in sorted(descendants((Pid(root),), all_processes())):
        process = Path(f"/proc/{pid}")
        found.append((int((process / "coredump_filter").read_text(), 16),))
        found.append((int((process / "autogroup").read_text().split()[-1]),))
        for thread in sorted(map(int, os.listdir(process / "task"))):
            slack_ns = int(Path(f"/proc/{thread}/timerslack_ns").read_text())
            found.append((os.sched_getaffinity(thread), libc.syscall(252, 1, thread), slack_ns))
    return found


#: The process with its threads, and its child.
AS_IT_WAS: list[tuple[object, ...]] = [
    (0x7F,),
    (7,),
    ({0}, IDLE, 123_456),
    ({1}, BEST_EFFORT_6, 70_000),
    (0x33,),
    (7,),
    (os.sched_getaffinity(0), 0, 50_000),
]


@contextmanager
def a_caller_unlike_others() -> Iterator[None]:
    """Within, whatever this process starts is bound to one CPU, has the idle I/O priority and another filter."""
    own = Pid(os.getpid())
    cpus, bits = os.sched_getaffinity(0), task_settings.coredump_filter_of(own)
    assert bits is not None
    try:
        os.sched_setaffinity(0, {1})
        task_settings.set_io_priority(own, IDLE)
        task_settings.set_coredump_filter(own, 0x1)
        yield
    finally:
        os.sched_setaffinity(0, cpus)
        task_settings.set_io_priority(own, 0)
        task_settings.set_coredump_filter(own, bits)


@pytest.mark.parametrize("pids", ["same", "new"])
def test_every_thread_has_what_it_had_from_its_first_step_on_whoever_restores_it(
    pids: str, workload: Workload, ckpt: Ckpt
) -> None:
    program = workload.start(Set)
    assert isinstance(program, Set)
    assert settings_of(program.pid) == AS_IT_WAS
    dumped = ckpt("dump", "--cgroup", workload.cgroup, "--name", ckpt.new_job_name(), "--stop")
    workload.await_empty()

    with a_caller_unlike_others():
        restored = ckpt("restore", dumped["id"], "--pids", pids)

    assert restored["warnings"] == []
    assert settings_of(restored["pid"]) == AS_IT_WAS
    assert program.complaints() == ""


def test_show_tells_what_was_set(workload: Workload, ckpt: Ckpt) -> None:
    program = workload.start(Set)
    dumped = ckpt("dump", "--cgroup", workload.cgroup, "--name", ckpt.new_job_name())
    [process, _] = ckpt("show", dumped["id"])["settings"]
    assert (process["pid"], process["coredump_filter"], process["autogroup_nice"]) == (program.pid, 0x7F, 7)
    assert process["threads"][0] == {
        "thread": program.pid,
        "cpus": [{"first": 0, "last": 0}],
        "io_priority": IDLE,
        "timer_slack_ns": 123_456,
    }


@contextmanager
def recorded() -> Iterator[tuple[Holder, Callable[..., tuple[str, ...]], ProcessSettings]]:
    """A process, a function that sets it again to what is given, and what it has."""
    with holding() as holder:
        taken = snapshot.take([holder.pid], holder.cgroup, None)
        [settings] = read_settings(taken.processes.values())

        def again(wanted: ProcessSettings, outside: tuple[Pid, ...] = ()) -> tuple[str, ...]:
            host_pid = {holder.pid: holder.pid}.get
            return set_again(taken.trees[0], (wanted,), host_pid, outside)

        yield holder, again, settings


def on_cpus(settings: ProcessSettings, *cpus: tuple[int, int]) -> ProcessSettings:
    ranges = tuple(CpuRange(first=first, last=last) for first, last in cpus)
    return replace(settings, threads=(replace(settings.threads[0], cpus=ranges),))


def test_a_thread_keeps_of_its_cpus_those_that_are_there_and_runs_on_all_where_none_is() -> None:
    every = set(task_settings.host_cpus())
    with recorded() as (holder, again, settings):
        some = again(on_cpus(settings, (1, 1), (4000, 4001)))
        assert os.sched_getaffinity(holder.pid) == {1}
        none = again(on_cpus(settings, (4000, 4000)))
        assert os.sched_getaffinity(holder.pid) == every
        assert again(on_cpus(settings)) == ()
    assert len(some) == len(none) == 1
    assert "lost the binding to CPU 4000-4001: not on this host" in some[0]
    assert "lost the binding to CPU 4000: not on this host" in none[0]


def test_the_autogroup_of_processes_outside_is_left_alone_and_said_to_be_lost() -> None:
    with recorded() as (holder, again, settings):
        lost = again(replace(settings, autogroup_nice=3), outside=(holder.pid,))
        assert task_settings.autogroup_of(holder.pid) == replace_nice(holder.pid, 0)
    assert len(lost) == 1
    assert "lost the nice value 3 of its autogroup" in lost[0]


def replace_nice(pid: Pid, nice: int) -> task_settings.Autogroup:
    group = task_settings.autogroup_of(pid)
    assert group is not None
    return replace(group, nice=nice)


def test_a_process_with_another_number_of_threads_is_told_of_and_the_rest_of_it_is_set() -> None:
    with recorded() as (holder, again, settings):
        lost = again(replace(settings, threads=settings.threads * 2, coredump_filter=0x1F))
        assert task_settings.coredump_filter_of(holder.pid) == 0x1F
    assert len(lost) == 1
    assert "lost the settings of its 2 threads" in lost[0]


def test_what_nobody_has_set_is_set_by_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    with recorded() as (_, again, settings):
        for name in ("bind_to_cpus", "set_io_priority", "set_timer_slack", "set_coredump_filter"):
            monkeypatch.delattr(task_settings, name)
        assert again(settings) == ()
        unknown = replace(settings.threads[0], io_priority=None, timer_slack_ns=None)
        assert again(replace(settings, coredump_filter=None, autogroup_nice=None, threads=(unknown,))) == ()


def test_a_timer_slack_beyond_what_is_recorded_is_the_longest_that_can_be() -> None:
    with recorded() as (holder, _, _):
        task_settings.set_timer_slack(holder.pid, Nanoseconds((1 << 64) - 1))
        assert task_settings.timer_slack_of(holder.pid) == (1 << 63) - 1
