"""Start a CRIU process on one end of a socket.

Rules: a launcher is any callable of type Launcher; a restore may be launched below a supervisor, in another
namespace, or by a parent that reaps. Whatever it starts holds `channel_fd` alone: if a copy stays open in
another process, the end of CRIU is noticed only by its pid.
Source: criu/crtools.c ("criu swrk <fd>"), criu/servicefd.c.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from ckpt.errors import OsRefused
from ckpt.units import Nanoseconds, Pid

# CRIU sizes its table of own descriptors by the soft limit when it starts: with fewer than it needs for the
# restored tasks it fails with "Can't chose service_fd_base". The shell raises it in the child alone: a limit
# raised here would be inherited by the jobs that this process starts.
_RAISE_LIMIT: Final = 'ulimit -Sn "$(ulimit -Hn)"; exec "$0" "$@"'


class Child(Protocol):
    """A CRIU process that was started."""

    @property
    def pid(self) -> Pid:
        """Its pid, as this process sees it."""

    def kill(self) -> None:
        """End it, and everything that it has started and not yet handed over, at once."""

    def wait(self, timeout: Nanoseconds) -> int | None:
        """Its exit status (negative: the signal), or None if it still runs after `timeout`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """What a launcher gets: `command` is complete and names `channel_fd`, which it must inherit.

    `kept_fds` are inherited too, under their numbers. `errors_fd` is its stderr: it says there what it has to
    say before it opens its log. `terminal`: CRIU keeps stdin and its process group,
    for a restore that takes over this terminal.
    """

    command: tuple[str, ...]
    channel_fd: int
    errors_fd: int
    kept_fds: tuple[int, ...] = ()
    terminal: bool = False


Launcher = Callable[[Launch], Child]


def swrk_command(criu: Path, channel_fd: int) -> tuple[str, ...]:
    """The command that serves one connection on `channel_fd`, untouched by the machine's CRIU config files."""
    return (
        "/bin/sh", "-c", _RAISE_LIMIT, str(criu), "--no-default-config", "swrk", str(channel_fd),
    )  # fmt: skip


def launch_child(launch: Launch) -> Child:
    """Start CRIU as a child of this process, in a process group of its own.

    Raises:
        OsRefused: it could not be started.
    """
    # A Ctrl-C at the terminal must reach ckpt alone, which then ends CRIU in order. And a signal that this
    # thread blocks would be blocked in CRIU as well, SIGALRM and SIGCHLD among them.
    blocked = signal.pthread_sigmask(signal.SIG_SETMASK, ())
    try:
        process = subprocess.Popen(
            launch.command,
            stdin=None if launch.terminal else subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=launch.errors_fd,
            pass_fds=(launch.channel_fd, *launch.kept_fds),
            process_group=None if launch.terminal else 0,
        )
    except OSError as error:
        raise OsRefused(operation="start", subject=launch.command[0], reason=str(error.strerror)) from error
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    return ChildProcess(process=process)


@dataclass(slots=True)
class ChildProcess:
    """CRIU as a child of this process."""

    process: subprocess.Popen[bytes]
    pid: Pid = field(init=False)

    def __post_init__(self) -> None:
        self.pid = Pid(self.process.pid)

    def kill(self) -> None:
        """End CRIU and its descendants: at a restore, the tasks that were not yet let go."""
        if self.process.poll() is None:
            kill_with_descendants(self.pid)

    def wait(self, timeout: Nanoseconds) -> int | None:
        """Its exit status (negative: the signal), or None if it still runs after `timeout`."""
        with suppress(subprocess.TimeoutExpired):
            return self.process.wait(timeout / 1e9)
        return None


def kill_with_descendants(pid: Pid) -> None:
    """Kill the process and all its descendants, so that none escapes by forking meanwhile."""
    stopped: list[Pid] = []
    found = [pid]
    while found:
        # What is stopped cannot fork: when a look finds nobody new, the list is complete.
        for task in found:
            _signal(task, signal.SIGSTOP)
        stopped += found
        known = set(stopped)
        found = [child for child in _descendants(stopped) if child not in known]
    for task in stopped:
        _signal(task, signal.SIGKILL)


def _signal(pid: Pid, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _descendants(roots: Sequence[Pid]) -> list[Pid]:
    parents: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with suppress(OSError):
                # The parent's pid is the second field after the name, which may contain anything but ")" last.
                stat = Path(f"/proc/{name}/stat").read_bytes().rpartition(b") ")[2].split()
                parents.setdefault(int(stat[1]), []).append(int(name))
    below: list[Pid] = []
    queue = list(roots)
    while queue:
        for child in parents.get(queue.pop(), ()):
            below.append(Pid(child))
            queue.append(Pid(child))
    return below
