"""Real processes that count as long as they run, and real cgroups to put them in; everything is cleaned up."""

from __future__ import annotations

import contextlib
import mmap
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from harness.pauses import PAUSE_S

from ckpt.host import cgroups
from ckpt.host.cgroups import Hierarchy
from ckpt.host.freezer_control import control_of
from ckpt.host.process_table import process_ref
from ckpt.units import Pid

SLOT_BYTES = 16
"""A pid and a count, each stored at once: struct.pack_into() would show a zero in between."""

# The first process forks the others; all count in a shared file, and each has some memory of its own.
PROGRAM = """
import mmap, os, sys, time
file = open(sys.argv[1], "r+b")
shared = memoryview(mmap.mmap(file.fileno(), 0)).cast("q")
mine = 0
for each in range(1, int(sys.argv[2])):
    if os.fork() == 0:
        mine = each
        break
ballast = bytearray(b"x") * int(sys.argv[3])
shared[2 * mine] = os.getpid()
while True:
    shared[2 * mine + 1] += 1
    time.sleep(0.001)
"""


class Ticking:
    """A tree of processes that count."""

    def __init__(self, count: int, ballast_bytes: int = 0) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed in end()
        self._file.truncate(count * SLOT_BYTES)
        self._map = mmap.mmap(self._file.fileno(), 0)
        self._shared = memoryview(self._map).cast("q")
        path = f"/proc/{os.getpid()}/fd/{self._file.fileno()}"
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", PROGRAM, path, str(count), str(ballast_bytes)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            await_true(lambda: all(ticks > 0 for ticks in self.ticks()), "the processes count")
        except BaseException:
            self.end()
            raise

    @property
    def root(self) -> Pid:
        return Pid(self.process.pid)

    def pids(self) -> list[Pid]:
        return [Pid(pid) for pid in self._shared[::2].tolist() if pid > 0]

    def ticks(self) -> list[int]:
        return self._shared[1::2].tolist()

    def runs(self, within_s: float = 1.0) -> bool:
        """Whether every process counts on."""
        before = self.ticks()
        return reaches(lambda: all(b > a for a, b in zip(before, self.ticks(), strict=True)), within_s)

    def stands_still(self, for_s: float = 0.03) -> bool:
        """Whether none of them counted in this time: thirty ticks of a process that runs."""
        before = self.ticks()
        return not reaches(lambda: self.ticks() != before, for_s)

    def alive(self) -> list[Pid]:
        return [pid for pid in self.pids() if is_running(pid)]

    def place(self, hierarchy: Hierarchy) -> set[str | None]:
        return {cgroups.cgroup_of(pid, hierarchy) for pid in self.alive()}

    def move_into(self, cgroup: str) -> None:
        for pid in self.pids():
            cgroups.add_process(cgroup, pid)

    def end(self) -> None:
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        await_true(lambda: not self.alive(), "the processes end")
        self._shared.release()
        self._map.close()
        self._file.close()


@contextmanager
def ticking(count: int, ballast_bytes: int = 0) -> Iterator[Ticking]:
    """Processes that count, ended at the end."""
    subject = Ticking(count, ballast_bytes)
    try:
        yield subject
    finally:
        # Whatever froze them: a version-1 frozen process does not die.
        for hierarchy in (cgroups.unified(), cgroups.freezer_v1()):
            for place in subject.place(hierarchy) if hierarchy is not None else ():
                control = control_of(place) if place is not None else None
                if control is not None and os.path.basename(control.cgroup).startswith("ckpt-"):
                    control.thaw()
        subject.end()


def living_operation() -> str:
    """The id of an operation of this process: what a dead one has made, any `ckpt recover` of the machine undoes."""
    me = process_ref(os.getpid())
    assert me is not None
    return f"0123456789ab-{me.pid}-{me.start_ticks}"


@contextmanager
def scratch_cgroup(hierarchy: Hierarchy, under: str = "") -> Iterator[str]:
    """A new cgroup; at the end everything in it is killed, and it is removed."""
    path = f"{under or hierarchy.mountpoint}/ckpt-test-freezer-{secrets.token_hex(4)}"
    os.mkdir(path)
    try:
        yield path
    finally:
        for each in cgroups.with_all_below(path):
            control = control_of(each)
            if control is not None:
                control.thaw()
        control = control_of(path)
        if control is not None:
            control.kill()
        await_true(lambda: cgroups.remove(path), f"{path} can be removed")


def is_running(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as stream:
            return stream.read().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def reaches(condition: Callable[[], bool], within_s: float) -> bool:
    deadline = time.monotonic() + within_s
    while not condition():
        asleep = time.monotonic()
        if asleep > deadline:
            return False
        time.sleep(0.001)
        slept_s = time.monotonic() - asleep
        deadline += slept_s if slept_s > PAUSE_S else 0
    return True


def await_true(condition: Callable[[], bool], what: str, within_s: float = 60.0) -> None:
    assert reaches(condition, within_s), f"waited {within_s} s in vain: {what}"
