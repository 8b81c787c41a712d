"""The processes of the tests: each carries its test's mark in its environment, through dump and restore.

Rule: only what carries the mark, or lives in a cgroup of the test, is ever signalled.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from harness.cgroups import unified_mount
from harness.waiting import await_condition

MARK = "CKPT_TEST_MARK"


def all_pids() -> list[int]:
    """Every process of this machine."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def marked(mark: str) -> list[int]:
    """Every living process whose mark begins so."""
    wanted = f"{MARK}={mark}".encode()
    return [
        pid
        for pid in all_pids()
        if any(variable.startswith(wanted) for variable in _read(pid, "environ").split(b"\0"))
    ]


def describe(pids: Iterable[int]) -> str:
    """The processes for people."""
    shown = []
    for pid in pids:
        command = _read(pid, "cmdline").replace(b"\0", b" ").decode(errors="replace").strip()
        state = next(
            (line for line in _read(pid, "status").splitlines() if line.startswith(b"State")), b"gone"
        )
        shown.append(f"{pid} [{state.decode()}] {command}")
    return "; ".join(shown)


def is_gone(pid: int) -> bool:
    """Whether nothing has this number, not even a zombie."""
    return not Path(f"/proc/{pid}").exists()


def await_gone(pids: Iterable[int], *, timeout_s: float = 60) -> None:
    """Wait until all are gone, zombies included: a zombie keeps the pid that its restored self must get."""
    pids = list(pids)
    await_condition(
        lambda: all(map(is_gone, pids)),
        lambda: f"the end of {describe(pid for pid in pids if not is_gone(pid))}",
        timeout_s=timeout_s,
    )


def descendants(root: int) -> list[int]:
    """The process and all below it."""
    children: dict[int, list[int]] = {}
    for pid in all_pids():
        with suppress(IndexError, ValueError):
            parent = int(_read(pid, "stat").rpartition(b")")[2].split()[1])
            children.setdefault(parent, []).append(pid)
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    return found


def thread_count(pid: int) -> int:
    """How many threads it has."""
    return len(os.listdir(f"/proc/{pid}/task"))


def start_ticks(pid: int) -> int:
    """When it was started: tells whether a pid still means the same process."""
    return int(_read(pid, "stat").rpartition(b")")[2].split()[19])


def cgroup_of(pid: int) -> Path:
    """Its cgroup in the version 2 hierarchy."""
    mount = unified_mount()
    assert mount is not None
    for line in _read(pid, "cgroup").decode().splitlines():
        if line.startswith("0::"):
            return mount / line.removeprefix("0::/")
    raise AssertionError(f"process {pid} is in no cgroup of version 2")


def namespace_of(pid: int, kind: str) -> str:
    """The identity of one of its namespaces."""
    return os.readlink(f"/proc/{pid}/ns/{kind}")


def time_offsets(pid: int) -> dict[str, int]:
    """What its time namespace adds, in nanoseconds, by clock: monotonic and boottime."""
    offsets = {}
    for line in _read(pid, "timens_offsets").decode().splitlines():
        clock, seconds, nanoseconds = line.split()
        offsets[clock] = int(seconds) * 1_000_000_000 + int(nanoseconds)
    return offsets


def is_dead(pid: int) -> bool:
    """Whether it will never run again: gone, or a zombie."""
    return _read(pid, "stat").rpartition(b")")[2].split()[:1] in ([], [b"Z"], [b"X"])


def kill(pids: Iterable[int]) -> None:
    """End them at once and wait until none of them runs."""
    pids = list(pids)
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    await_condition(
        lambda: all(map(is_dead, pids)),
        lambda: f"the death of {describe(pid for pid in pids if not is_dead(pid))}",
    )


def reap_in_background(process: subprocess.Popen[bytes]) -> None:
    """Be a parent that waits for its child, as a shell is: it leaves no zombie."""
    threading.Thread(target=process.wait, name=f"reaper of {process.pid}", daemon=True).start()


def _read(pid: int, name: str) -> bytes:
    """A file of /proc/PID; empty if the process is gone."""
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""
