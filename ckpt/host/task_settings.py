"""The door to what the kernel keeps for one task and CRIU does not: CPUs, I/O priority, timer slack, dump filter, autogroup.

Rules: all of it is read and set from outside, of tasks that run or stand still. What this kernel does not have, or
does not tell, is None; what cannot be set raises OSError.
Source: sched_setaffinity(2), ioprio_set(2), proc_pid_timerslack_ns(5), core(5), sched(7) ("The autogroup feature").
"""

from __future__ import annotations

import ctypes
import os
import platform
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from ckpt.model.settings import TIMER_SLACK_NS_MAX
from ckpt.units import Nanoseconds, Pid

_IOPRIO_NUMBERS: Final = {"x86_64": (251, 252), "aarch64": (30, 31)}
_SET, _GET = _IOPRIO_NUMBERS.get(platform.machine(), (-1, -1))
_WHO_PROCESS: Final = 1
"""The kernel's word for one thread."""
_CLASS_SHIFT: Final = 13
_FILE_BYTES_MAX: Final = 4096

_libc: Final = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Autogroup:
    """The group that a session forms for the scheduler; `name` is the kernel's, and of one boot."""

    name: str
    nice: int


def host_cpus() -> frozenset[int]:
    """The CPUs that are online."""
    text = _read("/sys/devices/system/cpu/online")
    if not text:
        return frozenset(range(os.cpu_count() or 1))
    found: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return frozenset(found)


def cpus_of(thread: Pid) -> frozenset[int]:
    """The online CPUs that a thread may run on. Raises OSError."""
    return frozenset(os.sched_getaffinity(thread))


def bind_to_cpus(thread: Pid, cpus: frozenset[int]) -> None:
    """Let a thread run on these CPUs, as far as there are such and its cgroup allows.

    Raises:
        OSError: EINVAL where none is left.
    """
    os.sched_setaffinity(thread, cpus)


def io_priority_of(thread: Pid) -> int | None:
    """As ioprio_set(2) takes it; 0 for a thread that follows its nice value."""
    value = int(_libc.syscall(_GET, _WHO_PROCESS, thread)) if _GET >= 0 else -1
    if value < 0:
        return None
    # Before Linux 6.0 the class "none" had a level, which cannot be set.
    return value if value >> _CLASS_SHIFT else 0


def set_io_priority(thread: Pid, value: int) -> None:
    """Set what io_priority_of() gave. Raises OSError."""
    if _libc.syscall(_SET, _WHO_PROCESS, thread, value) < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


def timer_slack_of(thread: Pid) -> Nanoseconds | None:
    """How late the kernel may let the thread's sleeps end."""
    # /proc/PID/task/TID has no such file, but /proc/TID has the thread's own.
    text = _read(f"/proc/{thread}/timerslack_ns")
    return Nanoseconds(min(int(text), TIMER_SLACK_NS_MAX)) if text else None


def set_timer_slack(thread: Pid, slack_ns: Nanoseconds) -> None:
    """Set what timer_slack_of() gave. Raises OSError."""
    _write(f"/proc/{thread}/timerslack_ns", str(slack_ns))


def coredump_filter_of(pid: Pid) -> int | None:
    """Which kinds of mappings a core dump of the process has; a bit for each."""
    text = _read(f"/proc/{pid}/coredump_filter")
    return int(text, 16) if text else None


def set_coredump_filter(pid: Pid, bits: int) -> None:
    """Set what coredump_filter_of() gave. Raises OSError."""
    _write(f"/proc/{pid}/coredump_filter", hex(bits))


def autogroup_of(pid: Pid) -> Autogroup | None:
    """The group of the process's session; None where the kernel forms none, or the session is older than init's."""
    words = _read(f"/proc/{pid}/autogroup").split()
    return Autogroup(name=words[0], nice=int(words[2])) if len(words) == 3 else None


def set_autogroup_nice(pid: Pid, nice: int) -> None:
    """Set the nice value of the whole group that the process is in. Raises OSError."""
    _write(f"/proc/{pid}/autogroup", str(nice))


def _read(path: str) -> str:
    with suppress(OSError):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.read(fd, _FILE_BYTES_MAX).decode("ascii", errors="replace").strip()
        finally:
            os.close(fd)
    return ""


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
